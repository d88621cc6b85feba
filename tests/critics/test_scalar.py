"""The scalar critic: its values, lambda-returns and clipped loss, against loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import tiny
from critic_states import random_states, random_steps, row_keys
from reference_policy import after_last

from dfpo_jax.critics import Scalar


def make(settings):
    """The critic, random parameters, and the values [B, R + 1] of the random states."""
    critic, states = settings.build(), random_states()
    params = tiny.randomised(critic.init(jax.random.key(0), states.shape[-1]), seed=1)
    layer = params["output"]
    return critic, params, (states.astype(float) @ layer["kernel"] + layer["bias"])[..., 0]


def test_values_start_at_zero_and_are_linear_in_the_state():
    critic, params, values = make(Scalar())
    found = critic.read(params, random_states())
    np.testing.assert_allclose(found, values, atol=1e-5)
    np.testing.assert_array_equal(critic.law(found), found[..., None])
    start = critic.init(jax.random.key(0), 6)
    np.testing.assert_array_equal(critic.read(tiny.randomised(start, scale=0), random_states()), 0)


@pytest.mark.parametrize("discount", [1.0, 0.8])
@pytest.mark.parametrize("bootstrap", [False, True])
def test_returns_equal_loops(discount, bootstrap):
    critic, _, values = make(Scalar())
    steps = random_steps(discount, bootstrap)
    end = after_last(values, steps.mask, steps.bootstrap)
    per_row = np.linspace(0.0, 1.0, len(values))
    values32 = jnp.asarray(values, jnp.float32)
    for lambda_ in (0.8, per_row):
        _, expected = reference.gae(
            steps.rewards, values[:, :-1], steps.mask, discount, lambda_, end
        )
        found = critic.returns(None, values32, steps, jnp.asarray(lambda_, jnp.float32))
        np.testing.assert_allclose(found[..., 0] * steps.mask, expected, atol=1e-5)
        rows = critic.targets(None, values32, steps, jnp.asarray(lambda_, jnp.float32))
        np.testing.assert_array_equal(rows.returns, found[..., 0])
        np.testing.assert_array_equal(rows.old_values, values32[:, :-1])


@pytest.mark.parametrize("value_clip", [0.0, 0.1])
def test_the_loss_equals_a_loop(value_clip):
    critic, params, old = make(Scalar(value_clip))
    rows = critic.targets(None, jnp.asarray(old, jnp.float32), random_steps(), 0.8)
    moved, states = tiny.randomised(params, 9), random_states(9)
    live = states.astype(float) @ moved["output"]["kernel"] + moved["output"]["bias"]
    (name, loss), *others = critic.losses(moved, states, rows, params, row_keys()).items()
    assert (name, others, loss.mask, loss.weight) == ("loss", [], None, 1.0)
    clipped = 0
    for b, i in zip(*np.nonzero(random_steps().mask), strict=True):
        value, goal = live[b, i, 0], float(rows.returns[b, i])
        error = (value - goal) ** 2
        if value_clip:
            move = min(max(value - old[b, i], -value_clip), value_clip)
            bounded = (old[b, i] + move - goal) ** 2
            clipped, error = clipped + (bounded > error), max(error, bounded)
        np.testing.assert_allclose(loss.per_token[b, i], 0.5 * error, rtol=1e-4, atol=1e-6)
    assert (clipped > 0) == (value_clip > 0)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match=r"value_clip is -1.0; it must lie in \[0, inf\]"):
        Scalar(value_clip=-1.0)
