"""The flow critic as pure functions of velocities: inference, targets, and settings."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import reference_critic
import tiny
from tiny import constant, widening

from dfpo_jax import ops
from dfpo_jax.algorithms import flow_critic
from dfpo_jax.algorithms.flow_critic import FlowCriticConfig

BATCH, TIME = 6, 4


# --- inference ----------------------------------------------------------------------------------


def test_inference_reads_the_map_or_integrates(variant):
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(BATCH, TIME, 5)).astype(np.float32)
    velocity = widening(np.zeros((BATCH, TIME), np.float32))
    for inference, factor in [
        ("one_step", math.exp(tiny.SLOPE)),
        ("ode", (1 + tiny.SLOPE / 3) ** 3),
    ]:
        config = FlowCriticConfig(inference=inference, num_steps=3, solver="euler", first_step=1.0)
        out = variant(lambda z, c=config: flow_critic.flow_samples(c, velocity, z))(noise)
        np.testing.assert_allclose(out, factor * noise, rtol=1e-5)


def test_quantiles_are_sorted_even_where_paths_cross():
    config = FlowCriticConfig(num_quantiles=6)
    folded = flow_critic.state_quantiles(config, lambda z, t, d: -2.0 * z, (BATCH, TIME))
    grid = np.asarray(ops.noise_quantiles(6))
    np.testing.assert_allclose(folded, np.broadcast_to(grid, (BATCH, TIME, 6)), atol=1e-6)


def test_spread_is_the_mean_derivative_of_the_frozen_flow():
    config = FlowCriticConfig(num_steps=3, solver="euler", first_step=1.0, num_samples=7)

    def velocity(z, t, d):  # the derivative differs from point to point
        return jnp.sin(2.0 * z) - z

    out = flow_critic.spread(config, velocity, (2, 3))
    step, slopes = 1e-3, []
    for start in np.asarray(ops.noise_quantiles(7), float):
        ends = []
        for z in (start - step, start + step):
            for _ in range(3):
                z = z + (math.sin(2 * z) - z) / 3
            ends.append(z)
        slopes.append(abs(ends[1] - ends[0]) / (2 * step))
    np.testing.assert_allclose(out, np.full((2, 3), np.mean(slopes)), rtol=1e-3)


# --- targets ------------------------------------------------------------------------------------


def targets(config, lambda_, discount=1.0, seed=1, samples=4):
    """Targets of a shifting critic on masks with holes, and all that they follow from."""
    rng = np.random.default_rng(seed)
    mask = reference.random_mask(rng, BATCH, TIME)
    bootstrap = np.arange(BATCH) % 2 == 1
    rewards = (rng.normal(size=mask.shape) * mask).astype(np.float32)
    centres = rng.normal(size=(BATCH, TIME + 1)).astype(np.float32)
    after = np.zeros((BATCH, TIME), np.float32)  # centre of the next valid state
    for b, row in enumerate(mask):
        slots = [i for i, m in enumerate(row) if m > 0]
        for i in slots:
            after[b, i] = centres[b, next((j for j in slots if j > i), i + 1)]
    config = dataclasses.replace(config, num_samples=samples)
    out = jax.jit(
        lambda key: flow_critic.return_targets(
            config,
            key,
            constant(centres[:, :-1]),
            constant(after),
            rewards,
            mask,
            discount=discount,
            critic_lambda=lambda_,
            bootstrap=bootstrap,
        )
    )(jax.random.key(seed))
    return np.asarray(out), rewards, centres, after, mask, bootstrap


def test_mixture_targets_have_the_mean_and_spread_of_their_law():
    samples, discount = 4000, 0.9
    for lambda_ in (0.0, 0.7):
        out, rewards, centres, after, mask, bootstrap = targets(
            FlowCriticConfig(), lambda_, discount, samples=samples
        )
        for b, row in enumerate(mask):
            slots = [i for i, m in enumerate(row) if m > 0]
            final = after[b, slots[-1]] * bootstrap[b] if slots else 0.0
            mean = reference_critic.gae_returns(
                rewards[b], centres[b], row, discount, lambda_, final
            )
            for i in slots:
                error = 6 * out[b, i].std() / math.sqrt(samples) + 1e-5
                assert abs(out[b, i].mean() - mean[i]) < error
                ends = i == slots[-1]
                if lambda_ == 0.0:  # r + discount (eps + centre), or r alone at the end
                    spread = 0.0 if ends and not bootstrap[b] else discount
                    assert abs(out[b, i].std() - spread) < 0.06


def test_targets_at_lambda_one_are_the_observed_returns():
    out, rewards, _, _, mask, bootstrap = targets(FlowCriticConfig(), 1.0, 0.9)
    for b in np.flatnonzero(~bootstrap):
        total = 0.0
        for i in reversed(np.flatnonzero(mask[b])):
            total = rewards[b, i] + 0.9 * total
            np.testing.assert_allclose(out[b, i], total, atol=1e-5)


def test_average_targets_equal_a_loop_per_quantile():
    config = FlowCriticConfig(target_mode="average")
    out, rewards, centres, after, mask, bootstrap = targets(config, 0.7, 0.9, samples=5)
    grid = np.asarray(ops.noise_quantiles(5))
    order_kept = True
    for b, row in enumerate(mask):
        slots = np.flatnonzero(row)
        for q, noise in enumerate(grid):
            final = (after[b, slots[-1]] + noise) * bootstrap[b] if len(slots) else 0.0
            expected = reference_critic.gae_returns(
                rewards[b], centres[b] + noise, row, 0.9, 0.7, final
            )
            np.testing.assert_allclose(
                np.sort(out[b], axis=-1)[slots, q], expected[slots], atol=1e-5
            )
            order_kept &= np.allclose(out[b][slots, q], expected[slots], atol=1e-5)
    assert not order_kept  # times are stratified along the same axis: quantiles must be shuffled


def test_targets_differ_by_key_and_carry_no_gradient():
    config = FlowCriticConfig(num_samples=3)
    zeros, ones = np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)

    def total(centre, key):
        centre = jnp.broadcast_to(centre, (2, 3))
        return jnp.sum(
            flow_critic.return_targets(
                config,
                key,
                constant(centre),
                constant(centre),
                zeros,
                ones,
                discount=1.0,
                critic_lambda=0.5,
                bootstrap=np.ones(2, bool),
            )
        )

    (value, grad), (other, _) = (
        jax.jit(jax.value_and_grad(total))(jnp.float32(0.3), jax.random.key(seed))
        for seed in (0, 1)
    )
    assert value != other
    assert grad == 0.0


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "num_samples is 0"),
        ({"num_steps": 0}, "num_steps is 0"),
        ({"num_quantiles": 2}, "num_quantiles is 2"),
        ({"solver": "rk5"}, "solver is 'rk5'.*euler, heun, midpoint, rk4"),
        ({"inference": "two_step"}, "inference is 'two_step'"),
        ({"target_mode": "both"}, "target_mode is 'both'"),
        ({"dcfm_base": "drop"}, "dcfm_base is 'drop'"),
        ({"geometry": "curved"}, "geometry is 'curved'"),
        ({"risk_targets": "none"}, "risk_targets is 'none'"),
        ({"uncertainty": "some"}, "uncertainty is 'some'"),
        ({"cvar_weight": -1.0}, "cvar_weight is -1.0"),
        ({"first_step": 0.0}, "first_step is 0.0"),
        ({"tail_alpha": 0.0}, "tail_alpha is 0.0"),
        ({"tail_beta": 1.5}, "tail_beta is 1.5"),
        ({"uncertainty_temperature": 0.0}, "uncertainty_temperature is 0.0"),
        ({"geometry": "straight"}, 'inference is "one_step".*geometry "map"'),
        ({"geometry_weight": 0.0}, 'inference is "one_step".*positive geometry_weight'),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        FlowCriticConfig(**options)
