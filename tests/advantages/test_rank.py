"""The rank of the return within the distribution of its state."""

import jax.numpy as jnp
import numpy as np
import pytest
import reference
from critic_states import random_steps

from dfpo_jax.advantages import Gae, Rank, View

SHAPE = (8, 5)  # of the ragged rows


def random_parts(samples=6):
    """Quantiles [B, R + 1, M], and samples [B, R, S] that tie with some of them."""
    rng = np.random.default_rng(0)
    quantiles = np.sort(rng.normal(size=(8, 6, 7))).astype(np.float32)
    goals = rng.normal(size=(*SHAPE, samples)).astype(np.float32)
    goals[:, :, 0] = quantiles[:, :-1, 3]
    return jnp.asarray(quantiles), jnp.asarray(goals)


def estimate(settings, quantiles, samples, steps=None):
    steps = random_steps() if steps is None else steps
    view = View(quantiles, lambda lambda_: samples)
    return settings.build().estimate(view, steps, None)


def test_rank_is_the_quantile_of_the_return(variant):
    quantiles, samples = random_parts()
    out = np.asarray(variant(lambda *x: estimate(Rank(), *x))(quantiles, samples))
    for b, i in np.ndindex(SHAPE):
        ranks = [2 * reference.cdf(quantiles[b, i], g) - 1 for g in samples[b, i]]
        np.testing.assert_allclose(out[b, i], np.mean(ranks), atol=1e-6)
    assert out.min() >= -1 and out.max() <= 1
    far = estimate(Rank(), quantiles, samples.at[0].set(1e9).at[1].set(-1e9))
    np.testing.assert_array_equal(far[:2], [[1.0] * 5, [-1.0] * 5])


def test_rank_ignores_monotone_distortions():
    quantiles, samples = random_parts()
    plain = estimate(Rank(), quantiles, samples)
    for distort in (lambda x: 100 * x - 7, jnp.sinh, lambda x: jnp.where(x > 0, 1e4 * x, x)):
        bent = estimate(Rank(), distort(quantiles), distort(samples))
        np.testing.assert_array_equal(plain, bent)
    bent = estimate(Gae(), 100 * quantiles, samples)
    assert np.any(estimate(Gae(), quantiles, samples) != bent)


def test_a_bandwidth_ranks_wide_laws_and_takes_the_mean_of_narrow_ones(variant):
    rng = np.random.default_rng(1)
    # Returns of -1 and 1, which the critic's samples miss by up to .2, at a rate by state.
    high = rng.random((8, 6, 7)) < rng.random((8, 6, 1))
    law = jnp.sort(jnp.asarray(np.where(high, 1.0, -1.0) + rng.uniform(-0.2, 0.2, high.shape)))
    goals = jnp.asarray(rng.choice([-1.0, 1.0], size=(*SHAPE, 6)))
    smooth = variant(lambda *x: estimate(Rank(bandwidth=0.5), *x))
    around = np.clip(
        (np.asarray(goals)[..., None] - np.asarray(law)[:, :-1, None]) / 0.5, -1.0, 1.0
    )
    np.testing.assert_allclose(smooth(law, goals), around.mean((-2, -1)), atol=1e-6)
    centres = jnp.where(law > 0.0, 1.0, -1.0)
    exact = (np.mean(goals, axis=-1) - np.mean(centres, axis=-1)[:, :-1]) / 2.0
    np.testing.assert_allclose(smooth(centres, goals), exact, atol=1e-6)
    error = lambda found: np.abs(found - exact).mean()  # noqa: E731
    assert error(smooth(law, goals)) < 0.5 * error(estimate(Rank(), law, goals))
    quantiles, samples = random_parts()
    wide = smooth(1e6 * quantiles, 1e6 * samples)
    np.testing.assert_allclose(wide, estimate(Rank(), quantiles, samples), atol=1e-6)


def test_samples_are_those_of_the_policys_lambda():
    quantiles, samples = random_parts()
    seen = []

    def returns(lambda_):
        seen.append(lambda_)
        return samples

    steps = random_steps()
    Rank(0.3).build().estimate(View(quantiles, returns), steps, None)
    Rank(length_adaptive_alpha=0.5).build().estimate(View(quantiles, returns), steps, None)
    assert seen[0] == 0.3
    lengths = steps.mask.sum(axis=1)
    expected = [max(0.0, 1 - 1 / (0.5 * n)) if n else 0.0 for n in lengths]
    np.testing.assert_allclose(seen[1], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lambda_": 1.5}, "lambda_ is 1.5"),
        ({"bandwidth": -0.1}, "bandwidth is -0.1"),
        ({"lambda_": 0.9, "length_adaptive_alpha": 0.5}, "lambda_ is 0.9; length_adaptive_alpha"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Rank(**options)
