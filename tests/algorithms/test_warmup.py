"""The value warm-up: of a fixed length, or until the explained variance settles."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dfpo_jax.advantages import Advantages, Gae
from dfpo_jax.algorithms import AlgorithmConfig, Returns, compose, warmup
from dfpo_jax.critics import Critics

METRIC = "rollout/explained_variance"
SETTLING = Critics("scalar", warmup=20, warmup_patience=3, warmup_rise=0.1)


def played(found):
    """Whether the policy learns in each iteration, and in the one after the last of them."""
    controls, learns = warmup.first_controls(SETTLING), []
    for step, value in enumerate([*found, None]):
        scale = warmup.policy_scale(SETTLING, jnp.int32(step), controls)
        learns.append(bool(scale))
        if value is not None:
            controls = {**controls, **warmup.adapt(SETTLING, controls, {METRIC: value})}
    return learns


def test_it_ends_when_the_variance_has_not_risen_for_the_patience():
    # .05 and .12 are no rise by .1 over 0; .2 is one, and then three are none.
    assert played([0.0, 0.05, 0.2, 0.25, 0.1, 0.29]) == [False] * 6 + [True]
    assert played([0.0, 0.2, 0.4, 0.6, 0.8]) == [False] * 6
    # What follows cannot bring it back.
    assert played([0.0, 0.0, 0.0, 0.0, 0.9, 0.9]) == [False] * 4 + [True] * 3


def test_an_iteration_without_an_update_counts_for_nothing():
    assert played([0.0, math.nan, math.nan, math.nan, math.nan]) == [False] * 6


def test_it_ends_after_its_iterations_whatever_the_variance():
    rising = warmup.first_controls(SETTLING)
    for step, learns in ((19, False), (20, True)):
        assert bool(warmup.policy_scale(SETTLING, jnp.int32(step), rising)) == learns
    fixed = Critics("scalar", warmup=2)
    assert warmup.first_controls(fixed) == warmup.adapt(fixed, {}, {METRIC: 0.3}) == {}
    scales = [float(warmup.policy_scale(fixed, jnp.int32(step), {})) for step in range(4)]
    assert scales == [0.0, 0.0, 1.0, 1.0]


def test_the_explained_variance_of_a_batch_is_that_of_its_returns():
    config = AlgorithmConfig(SETTLING, Advantages("gae"))
    algorithm = compose(tiny.Markov(), config, 0.8)
    rollout = tiny.ragged_rollout()
    state = tiny.make_state(algorithm)
    state = state.replace(params=tiny.randomised(state.params, seed=3, scale=0.3))
    _, context = algorithm.prepare(state, rollout, jax.random.key(5))
    values = np.asarray(algorithm.predict(state, rollout))[..., 0]
    inside = np.asarray(rollout.mask) > 0
    returns = np.broadcast_to(np.asarray(rollout.rewards)[:, None], inside.shape)
    expected = 1 - np.var((returns - values)[inside]) / np.var(returns[inside])
    np.testing.assert_allclose(context.explained_variance, expected, rtol=1e-4)
    assert set(algorithm.controls) >= {"warmup_best", "warmup_waited", "warmup_over"}


def test_without_an_outcome_an_advantage_is_the_change_of_the_value():
    """At lambda 1 it is V(the last state) - V(s_i), whatever the rewards of the responses."""
    config = AlgorithmConfig(
        Critics("scalar", source="somewhere"),
        Advantages("gae", whiten=False, gae=Gae(lambda_=1.0)),
        returns=Returns(outcome=False),
    )
    algorithm, rollout = compose(tiny.Markov(), config, 0.8), tiny.ragged_rollout()
    state = tiny.make_state(algorithm, shift=0.0, scale=1.0)
    batch, context = algorithm.prepare(state, rollout, jax.random.key(5))
    values = np.asarray(algorithm.predict(state, rollout))[..., 0]
    for found, value, mask in zip(batch.advantages, values, rollout.mask, strict=True):
        slots = np.flatnonzero(mask)
        expected = value[slots[-1:]] - value[slots] if len(slots) else 0.0
        np.testing.assert_allclose(found[slots], expected, atol=1e-5)
    assert context.explained_variance is None
    moved, _ = algorithm.prepare(
        state, rollout.replace(rewards=rollout.rewards + 5), jax.random.key(5)
    )
    np.testing.assert_array_equal(moved.advantages, batch.advantages)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup_patience": 3}, "warmup_patience is 3; it must lie in .0, 0."),
        ({"warmup": 5, "warmup_rise": 0.2}, "warmup_rise is 0.2; warmup_patience is 0"),
        ({"warmup": 5, "warmup_patience": 1, "warmup_rise": -1.0}, "warmup_rise is -1.0"),
        ({"source": "runs/x", "trunk": "detached"}, "source is 'runs/x' and trunk 'detached'"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Critics("scalar", **options)
