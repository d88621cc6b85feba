"""The flow critic's return samples and bounds as functions of velocities."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import reference
import reference_critic
from tiny import constant

from dfpo_jax import ops
from dfpo_jax.critics import Flow
from dfpo_jax.critics.flow_losses import Fields, flow_losses, return_samples
from dfpo_jax.types import Steps

BATCH, TIME = 6, 4


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
    steps = Steps(rewards, mask, bootstrap, discount)
    out = jax.jit(
        lambda key: return_samples(
            config, key, constant(centres[:, :-1]), constant(after), steps, lambda_
        )[0]
    )(jax.random.key(seed))
    return np.asarray(out), rewards, centres, after, mask, bootstrap


def test_mixture_targets_have_the_mean_and_spread_of_their_law():
    samples, discount = 4000, 0.9
    for lambda_ in (0.0, 0.7):
        out, rewards, centres, after, mask, bootstrap = targets(
            Flow(), lambda_, discount, samples=samples
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
    out, rewards, _, _, mask, bootstrap = targets(Flow(), 1.0, 0.9)
    for b in np.flatnonzero(~bootstrap):
        total = 0.0
        for i in reversed(np.flatnonzero(mask[b])):
            total = rewards[b, i] + 0.9 * total
            np.testing.assert_allclose(out[b, i], total, atol=1e-5)


def test_average_targets_equal_a_loop_per_quantile():
    config = Flow(target_mode="average")
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
    config = Flow(num_samples=3)
    steps = Steps(np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32), np.ones(2, bool))

    def total(centre, key):
        centre = jnp.broadcast_to(centre, (2, 3))
        fields = constant(centre), constant(centre)
        return jnp.sum(return_samples(config, key, *fields, steps, 0.5)[0])

    (value, grad), (other, _) = (
        jax.jit(jax.value_and_grad(total))(jnp.float32(0.3), jax.random.key(seed))
        for seed in (0, 1)
    )
    assert value != other
    assert grad == 0.0


def test_the_value_bound_holds_for_targets_and_losses():
    """A field that doubles its state, and rewards far out."""
    config = Flow(num_samples=4, value_bound=2.0, anchor_weight=0.0, dcfm_weight=0.0)
    ones = np.ones((BATCH, TIME), np.float32)
    rewards = 0 * ones
    rewards[:, -1] = [100.0 if row % 2 else -100.0 for row in range(BATCH)]

    def steep(z, t, d):
        return 50.0 * z

    steps = Steps(rewards, ones, np.zeros(BATCH, bool))
    found, _ = return_samples(config, jax.random.key(0), steep, steep, steps, 1.0)
    expected = np.sign(rewards[:, -1:, None]) * np.full((BATCH, TIME, 4), 2.0, np.float32)
    np.testing.assert_array_equal(found, expected)

    def geometry(config):
        keys = jax.random.split(jax.random.key(1), BATCH)
        fields, idle = Fields(steep, steep, steep), steps.replace(rewards=0 * rewards)
        losses = flow_losses(config, keys, fields, found, idle, ones, ones)
        return np.asarray(losses["geometry"].per_token)

    # |v(eps) - (z_1 - eps)| <= 50 |eps| + 2 + |eps|, with |eps| < 5.
    assert 0 < geometry(config).max() < (51 * 5 + 2) ** 2
    assert geometry(dataclasses.replace(config, value_bound=0.0)).max() > 1e6
