"""Inverse-variance weights: by closed forms, and against every other weight."""

import jax.numpy as jnp
import numpy as np
import pytest
import reference
from critic_states import random_steps
from reference_policy import after_last

from dfpo_jax.advantages import Gae, Precision, Risk, View
from dfpo_jax.types import Steps

ARMS = np.array([0.5, 20.0])  # deviations of the two arms' returns


def estimate(settings, law, steps):
    view = View(jnp.asarray(law), returns=None)
    return np.asarray(settings.build().estimate(view, steps, None)) * steps.mask


def two_arms(centre, count=4000):
    """One-token episodes of two arms by turns, whose laws are two atoms, and their advantages.

    Both arms improve by the same step: E[A] = 1 for each, with the deviation of the arm.
    """
    rng, sigma = np.random.default_rng(0), np.tile(ARMS, count // 2)
    atoms = np.array([-1.0, -1.0, 1.0, 1.0])
    law = centre + sigma[:, None, None] * np.broadcast_to(atoms, (count, 2, 4))
    rewards = centre + 1.0 + sigma * rng.choice([-1.0, 1.0], count)
    steps = Steps(
        np.float32(rewards[:, None]), np.ones((count, 1), np.float32), np.zeros(count, bool)
    )
    return np.float32(law), steps, sigma


def test_weights_of_two_arms_are_those_of_least_variance():
    """Of w_1 A_1 + w_2 A_2 with w_1 + w_2 = 1 the variance is least at w_i ~ 1 / sigma_i^2."""
    law, steps, sigma = two_arms(centre=3.0)
    plain = estimate(Gae(1.0), law, steps)[:, 0]
    weighted = estimate(Precision(1.0, floor=1e-3), law, steps)[:, 0]
    np.testing.assert_allclose(weighted / plain, 1 / sigma**2, rtol=1e-3)
    best = (1 / ARMS**2) / (1 / ARMS**2).sum()
    found = (weighted / plain)[:2] / (weighted / plain)[:2].sum()
    np.testing.assert_allclose(found, best, rtol=1e-3)

    def variance(share):  # of an estimate of the common step, from one episode of each arm
        weights = np.stack([share, 1.0 - share], axis=-1)
        return (weights**2 * ARMS**2).sum(axis=-1)

    others = np.linspace(0.0, 1.0, 4001)
    assert variance(found[0]) <= variance(others).min() * (1 + 1e-3)
    assert variance(found[0]) == pytest.approx(1 / (1 / ARMS**2).sum(), rel=1e-3)
    by_sigma = (1 / ARMS) / (1 / ARMS).sum()
    assert variance(found[0]) < 0.6 * variance(by_sigma[0])
    # What the sampled episodes say.
    pairs = weighted.reshape(-1, 2).sum(axis=1) / (1 / ARMS**2).sum()
    assert pairs.var() == pytest.approx(variance(best[0]), rel=0.1)


@pytest.mark.parametrize("floor", [0.3, 2.0])
def test_the_floor_bounds_the_weights(floor):
    law, steps, sigma = two_arms(centre=0.0, count=40)
    plain = estimate(Gae(1.0), law, steps)[:, 0]
    found = estimate(Precision(1.0, floor=floor), law, steps)[:, 0]
    np.testing.assert_allclose(found, plain / (sigma**2 + floor**2), rtol=1e-5)
    certain = np.zeros_like(law)
    found = estimate(Precision(1.0, floor=floor), certain, steps)[:, 0]
    np.testing.assert_allclose(found, steps.rewards[:, 0] / floor**2, rtol=1e-5)


def test_it_is_the_advantage_of_gae_over_the_variance_in_loops(variant):
    steps, rng = random_steps(), np.random.default_rng(0)
    batch, length = steps.mask.shape
    law = np.sort(rng.normal(size=(batch, length + 1, 7)), axis=-1).astype(np.float32)
    end = after_last(law.mean(axis=-1), steps.mask, steps.bootstrap)
    values = law.mean(axis=-1)[:, :-1]
    plain = reference.gae(steps.rewards, values, steps.mask, steps.discount, 0.8, end)[0]
    run = variant(lambda law: Precision(0.8).build().estimate(View(law, None), steps, None))
    found = np.asarray(run(law)) * steps.mask
    np.testing.assert_allclose(found, plain / (law[:, :-1].var(axis=-1) + 0.3**2), atol=1e-4)
    options = {"length_adaptive_alpha": 0.2, "risk": Risk("cvar", alpha=0.3)}
    gae, precision = (estimate(kind(**options), law, steps) for kind in (Gae, Precision))
    np.testing.assert_allclose(precision, gae / (law[:, :-1].var(axis=-1) + 0.09), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"floor": 0.0}, r"floor is 0.0; it must lie in \[0.001, inf\]"),
        ({"lambda_": 1.5}, "lambda_ is 1.5"),
        ({"lambda_": 0.9, "length_adaptive_alpha": 0.5}, "lambda_ is 0.9; length_adaptive_alpha"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Precision(**options)
    assert Precision().build().needs == {"law"}
