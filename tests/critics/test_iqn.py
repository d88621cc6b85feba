"""Implicit quantiles: their reading and loss against loops, and what they learn."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
import tiny
from critic_states import random_states, random_steps, row_keys

from dfpo_jax.critics import Iqn
from dfpo_jax.types import Steps

SMALL = Iqn(num_fractions=6, num_quantiles=5, num_cosines=3, hidden=7, kappa=0.5)


def plain_quantiles(params, states, levels):
    """[..., F] by the formula, level by level."""
    x = states.astype(float) @ params["features"]["kernel"] + params["features"]["bias"]
    out = np.zeros(levels.shape)
    for index in np.ndindex(levels.shape):
        waves = np.cos(np.pi * np.arange(3) * float(levels[index]))
        embedded = waves @ params["levels"]["kernel"] + params["levels"]["bias"]
        product = x[index[:-1]] * np.maximum(embedded, 0.0)
        out[index] = (product @ params["output"]["kernel"] + params["output"]["bias"])[0]
    return out


def compiled(settings):
    """The critic, whose functions are programs."""
    critic = settings.build()
    read, targets, losses = map(jax.jit, (critic.read, critic.targets, critic.losses))
    init = jax.jit(critic.init, static_argnums=1)
    return critic._replace(init=init, read=read, targets=targets, losses=losses)


def make():
    critic, states = compiled(SMALL), random_states()
    params = tiny.randomised(critic.init(jax.random.key(0), states.shape[-1]), seed=1)
    return critic, params, states


def test_a_state_is_read_at_the_midpoint_levels():
    critic, params, states = make()
    found = critic.read(params, states)
    levels = np.broadcast_to((np.arange(5) + 0.5) / 5, (*states.shape[:2], 5))
    expected = np.sort(plain_quantiles(params, states, levels), axis=-1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(critic.law(found), found)
    new = nn.unbox(critic.init(jax.random.key(0), states.shape[-1]))
    np.testing.assert_array_equal(critic.read(new, states), np.zeros(found.shape))


def test_the_loss_equals_a_loop_at_levels_from_the_rows_own_keys():
    critic, params, states = make()
    rows = critic.targets(jax.random.key(3), critic.read(params, states), random_steps(), 0.8)
    moved, keys = tiny.randomised(params, 9), row_keys()
    found = critic.losses(moved, states, rows, params, keys)["loss"]
    assert found.mask is None and found.weight == 1.0
    batch, length = rows.shape[:2]
    levels = np.stack([jax.random.uniform(key, (length, 6)) for key in keys])
    live = plain_quantiles(moved, states[:, :-1], levels)
    for index in np.ndindex(batch, length):
        expected = reference.quantile_huber(live[index], rows[index], levels[index], 0.5)
        np.testing.assert_allclose(found.per_token[index], expected, rtol=1e-3, atol=1e-4)


def test_a_bimodal_return_is_learned():
    """Returns of -1 and 1 from one state; at lambda 1 nothing is bootstrapped."""
    critic, rows = compiled(Iqn(8, 16, 16, 16, kappa=0.0)), 32
    params = nn.unbox(critic.init(jax.random.key(0), 3))
    states, rewards = jnp.ones((rows, 2, 3)), jnp.where(jnp.arange(rows) % 4 < 3, 1.0, -1.0)
    steps = Steps(rewards[:, None], jnp.ones((rows, 1)), jnp.zeros(rows, bool))
    optimizer = optax.adam(0.03)

    def update(carry, key):
        params, moments = carry
        targets = critic.targets(key, critic.read(params, states), steps, 1.0)

        def loss(p):
            keys = jax.random.split(key, rows)
            return critic.losses(p, states, targets, params, keys)["loss"].per_token.mean()

        changes, moments = optimizer.update(jax.grad(loss)(params), moments)
        return (optax.apply_updates(params, changes), moments), None

    keys = jax.random.split(jax.random.key(1), 300)
    (params, _), _ = jax.lax.scan(update, (params, optimizer.init(params)), keys)
    law = np.asarray(critic.law(critic.read(params, states)))[0, 0]
    np.testing.assert_allclose(np.mean(law > 0), 0.75, atol=1 / 16)
    np.testing.assert_allclose(law.mean(), 0.5, atol=0.1)
    np.testing.assert_allclose(law[[0, 1, -2, -1]], [-1, -1, 1, 1], atol=0.25)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_fractions": 0}, "num_fractions is 0"),
        ({"num_quantiles": 1}, "num_quantiles is 1"),
        ({"num_cosines": 0}, "num_cosines is 0"),
        ({"hidden": 0}, "hidden is 0"),
        ({"kappa": -1.0}, "kappa is -1.0"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Iqn(**options)
