"""The scalar flow critic: its value, its target and its loss, against loops."""

import dataclasses

import jax
import numpy as np
import pytest
import reference
import reference_critic
import tiny
from critic_states import DISCOUNT, random_states, random_steps, row_keys
from reference_policy import after_last

from dfpo_jax import ops
from dfpo_jax.critics import Flow, ScalarFlow, flow_losses
from dfpo_jax.models import ValueFlow

LAMBDA = 0.8
CONFIG = ScalarFlow(
    head=tiny.HEAD, num_samples=3, num_steps=4, solver="euler", first_step=2.0, num_noises=5
)


def velocity_of(params, states):
    """(z, t, d) -> [B, T, S] of the network."""
    head, variables = ValueFlow(tiny.HEAD), {"params": params}
    condition = head.apply(variables, states, method="condition")
    return lambda z, t, d: head.apply(variables, condition, z, t, d, method="velocity")


def make(config=CONFIG):
    critic, states = config.build(), random_states()
    params = tiny.randomised(critic.init(jax.random.key(0), states.shape[-1]), seed=1)
    return critic, params, states, critic.read(params, states)


def values_of(params, states):
    """[B, T] mean end point of Euler steps 2/5, 1/5, 1/5, 1/5 from five noise quantiles."""
    velocity, begin = velocity_of(params, states), 0.0
    grid = np.asarray(ops.noise_quantiles(5))
    z = np.broadcast_to(grid, (*states.shape[:2], 5))
    for width in (0.4, 0.2, 0.2, 0.2):
        z, begin = z + width * np.asarray(velocity(z, begin, 0.0)), begin + width
    return z.mean(axis=-1)


def test_the_value_is_the_mean_over_its_noises():
    critic, params, states, reading = make()
    law = critic.law(reading)
    assert law.shape == (*states.shape[:2], 1)
    np.testing.assert_array_equal(law, critic.law(reading))  # no draw enters it
    np.testing.assert_allclose(law[..., 0], values_of(params, states), atol=1e-5)
    assert np.ptp(law) > 0.1
    assert critic.gives == {"value"}
    paths = np.asarray(critic.paths(reading))
    assert paths.shape == (17, *states.shape[:2], 5)


@pytest.mark.parametrize("bound", [0.0, 0.4])
def test_the_target_is_the_scalar_lambda_return(bound):
    critic, params, states, reading = make(dataclasses.replace(CONFIG, value_bound=bound))
    steps = random_steps()
    values = np.asarray(critic.law(reading))[..., 0]
    end = after_last(values, steps.mask, steps.bootstrap)
    _, goals = reference.gae(steps.rewards, values[:, :-1], steps.mask, DISCOUNT, LAMBDA, end)
    goals = np.clip(goals, -bound, bound) if bound else goals
    first, second = (
        critic.returns(jax.random.key(seed), reading, steps, LAMBDA) for seed in (0, 1)
    )
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first[..., 0] * steps.mask, goals * steps.mask, atol=1e-5)
    rows = critic.targets(jax.random.key(0), reading, steps, LAMBDA)
    np.testing.assert_array_equal(rows.samples, np.repeat(first, 3, axis=-1))


def test_the_loss_is_the_anchor_on_the_draws_of_the_flow_critic(monkeypatch):
    critic, params, states, reading = make()
    steps, moved = random_steps(), tiny.randomised(params, seed=8)
    rows, drawn = critic.targets(jax.random.key(0), reading, steps, LAMBDA), {}
    inner = flow_losses.draw

    def draw(sampler, keys, shape):
        drawn[sampler] = np.asarray(inner(sampler, keys, shape))
        return drawn[sampler]

    monkeypatch.setattr(flow_losses, "draw", draw)
    (name, loss), *others = critic.losses(moved, states, rows, params, row_keys()).items()
    assert (name, others, loss.mask, loss.weight) == ("anchor", [], None, 1.0)
    noise, times = drawn[jax.random.normal], drawn[ops.stratified_times]
    goals = np.asarray(rows.samples)
    points = (1 - times) * noise + times * goals
    found = np.asarray(velocity_of(moved, states[:, :-1])(points, times, 0.0))
    expected = np.mean((found - (goals - noise)) ** 2, axis=-1)
    np.testing.assert_allclose(loss.per_token, expected, rtol=1e-4, atol=1e-5)
    # The distributional critic with the same network draws the same noise and times.
    options = {"num_samples": 3, "inference": "ode", "dcfm_weight": 0.0, "geometry_weight": 0.0}
    other, before = Flow(head=tiny.HEAD, **options).build(), dict(drawn)
    again = other.losses(moved, states, rows, params, row_keys())["anchor"].per_token
    np.testing.assert_array_equal(again, loss.per_token)
    for sampler, x in before.items():
        np.testing.assert_array_equal(drawn[sampler], x)


def test_the_exact_flow_to_one_number_is_read_exactly():
    """The field of a point mass, (y - z) / (1 - t), leads every noise to y by any Euler steps."""
    goal = np.float32(0.7)

    def field(z, t, d):
        return (goal - z) / (1.0 - t)

    reader = Flow(
        num_steps=4, solver="euler", first_step=2.0, inference="ode", geometry_weight=0.0
    ).reader
    np.testing.assert_allclose(reader.quantiles(field, (2, 3), 5), goal, atol=1e-6)
    z = reference_critic.runge_kutta(lambda z, t: field(z, t, 0.0), 1.3, 0.0, 1.0, 4, "euler", 2.0)
    assert abs(z - goal) < 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_noises": 2}, "num_noises is 2; it must lie in"),
        ({"num_samples": 0}, "num_samples is 0"),
        ({"num_steps": 0}, "num_steps is 0"),
        ({"solver": "rk5"}, "solver is 'rk5'"),
        ({"first_step": 0.0}, "first_step is 0.0"),
        ({"value_bound": -1.0}, "value_bound is -1.0"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ScalarFlow(**options)
