"""Ensembles of values: their heads, what each learns from, and robust values and targets."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import tiny
from critic_states import DISCOUNT, random_states, random_steps, row_keys
from reference_policy import after_last

from dfpo_jax.critics import Ensemble, Robust

NUM, LAMBDA = 3, 0.8


def make(settings):
    """The critic, random parameters, states, and the heads' values [B, R + 1, N]."""
    critic, states = settings.build(), random_states()
    params = tiny.randomised(critic.init(jax.random.key(0), states.shape[-1]), seed=1)
    layer = params["output"]
    return critic, params, states, states.astype(float) @ layer["kernel"] + layer["bias"]


def tv(heads):
    """radius .4, lowest -2, three heads: 0.6 * 3 = 1 + 0.8 of the sorted values."""
    low, middle, _ = np.moveaxis(np.sort(heads, axis=-1), -1, 0)
    return 0.4 * -2.0 + (low + 0.8 * middle) / 3


VALUES = {
    "mean": (Ensemble(NUM), lambda heads: heads.mean(axis=-1)),
    "minimum": (Robust(num_heads=NUM), lambda heads: heads.min(axis=-1)),
    "tv": (Robust("tv", 0.4, -2.0, num_heads=NUM), tv),
}


@pytest.mark.parametrize(("settings", "value"), VALUES.values(), ids=VALUES)
def test_values_and_targets_are_those_of_the_heads(settings, value):
    critic, params, states, heads = make(settings)
    reading = critic.read(params, states)
    np.testing.assert_allclose(critic.heads(reading), heads, atol=1e-5)
    np.testing.assert_allclose(critic.law(reading), value(heads)[..., None], atol=1e-5)
    assert critic.gives == {"value", "heads"}
    steps, values = random_steps(), value(heads)
    end = after_last(values, steps.mask, steps.bootstrap)
    _, expected = reference.gae(steps.rewards, values[:, :-1], steps.mask, DISCOUNT, LAMBDA, end)
    found = critic.targets(jax.random.key(0), reading, steps, LAMBDA).returns
    np.testing.assert_allclose(found * steps.mask, expected * steps.mask, atol=1e-5)
    sample = critic.returns(jax.random.key(0), reading, steps, LAMBDA)
    np.testing.assert_array_equal(sample, found[..., None])


@pytest.mark.parametrize("settings", [Ensemble(NUM, disjoint=True), Robust(num_heads=NUM)])
def test_every_head_learns_from_its_own_rows(settings):
    critic, params, states, _ = make(settings)
    rows = critic.targets(jax.random.key(0), critic.read(params, states), random_steps(), LAMBDA)
    moved = tiny.randomised(params, 9)
    heads = states.astype(float) @ moved["output"]["kernel"] + moved["output"]["bias"]
    loss = critic.losses(moved, states, rows, params, row_keys())["loss"]
    errors = 0.5 * (heads[:, :-1] - np.asarray(rows.returns)[..., None]) ** 2
    for b, per_token in enumerate(loss.per_token):
        own = errors[b, :, b % NUM] if settings.disjoint else errors[b].mean(axis=-1)
        np.testing.assert_allclose(per_token, own, rtol=1e-4, atol=1e-5)

    def row_loss(params, b):
        return critic.losses(params, states, rows, params, row_keys())["loss"].per_token[b].sum()

    slopes = jax.jit(jax.jacobian(lambda p: jnp.stack([row_loss(p, b) for b in range(4)])))(moved)
    learns = np.any(np.asarray(slopes["output"]["kernel"]), axis=1)  # [rows, N]
    by_number = np.arange(4)[:, None] % NUM == np.arange(NUM)
    np.testing.assert_array_equal(learns, by_number if settings.disjoint else np.ones((4, NUM)))


def test_rows_of_a_split_batch_keep_their_heads():
    critic, params, states, _ = make(Ensemble(NUM, disjoint=True))
    rows = critic.targets(jax.random.key(0), critic.read(params, states), random_steps(), LAMBDA)
    whole = critic.losses(params, states, rows, params, row_keys())["loss"].per_token
    part = jax.tree.map(lambda x: x[1:], rows)
    found = critic.losses(params, states[1:], part, params, row_keys()[1:])["loss"].per_token
    # Squares of errors that are near 0 hold the rounding of values near 1.
    np.testing.assert_allclose(found, whole[1:], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("settings", [Ensemble(4, init_scale=0.3), Robust(init_scale=0.3)])
def test_heads_start_apart(settings):
    critic, states = settings.build(), jax.random.normal(jax.random.key(1), (8, 16, 64))
    values = critic.read(nn.unbox(critic.init(jax.random.key(0), 64)), states)
    np.testing.assert_allclose(np.std(values, axis=(0, 1)), 0.3, rtol=0.35)
    assert np.all(np.std(values, axis=-1) > 0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Ensemble(1), "num_heads is 1; it must lie in"),
        (lambda: Ensemble(init_scale=0.0), "init_scale is 0.0; it must be finite and above 0"),
        (lambda: Robust(num_heads=1), "num_heads is 1"),
        (lambda: Robust("lowest"), "kind is 'lowest'; it must be one of minimum, tv"),
        (lambda: Robust("tv", 1.5), "radius is 1.5"),
        (lambda: Robust("tv", lowest=float("nan")), "lowest is nan; it must be finite"),
        (lambda: Robust(radius=0.2), "radius is 0.2; kind is 'minimum', so it must be left at 0.5"),
    ],
)
def test_bad_settings_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
