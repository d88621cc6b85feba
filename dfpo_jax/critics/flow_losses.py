"""DFPO's critic losses and targets as functions of velocities, which know no network.

Distributional Value Flow Policy Optimization, arXiv 2602.05890; the equations are a reconstruction,
see the README. `config` is `critics.flow.Flow` everywhere.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dfpo_jax import ops
from dfpo_jax.critics.flow_inference import noise_grid, one_step
from dfpo_jax.critics.interface import draw, mixed_returns
from dfpo_jax.critics.tails import risk_losses, tail_weights
from dfpo_jax.models.value_flow import Velocity
from dfpo_jax.types import Array, Loss, Steps


class Fields(NamedTuple):
    """The velocities that losses compare.

    Attributes:
      live: at the states before tokens; differentiated.
      old: the old parameters' field at the same states.
      next_old: the old parameters' field at the states after tokens.
    """

    live: Velocity
    old: Velocity
    next_old: Velocity


def return_samples(
    config: Any,
    key: Array,
    velocity: Velocity,
    next_velocity: Velocity,
    steps: Steps,
    lambda_: float | Array,
) -> Array:
    """Samples [B, R, S] of the return at every state, by the configured target mode.

    Args:
      config: number of samples, inference and target mode.
      key: PRNG key.
      velocity: old field at the states before tokens.
      next_velocity: old field at the states after tokens (the next valid ones).
      steps: rewards, mask, bootstraps and discount.
      lambda_: a number or [B].
    """
    reader, mask = config.reader, steps.mask
    shape = (*steps.rewards.shape, config.num_samples)
    noise_key, mix_key = jax.random.split(key)
    if config.target_mode == "mixture":
        samples = reader.samples(next_velocity, jax.random.normal(noise_key, shape))
        return reader.clipped(mixed_returns(mix_key, samples, steps, lambda_))
    grid = noise_grid(mask.shape, config.num_samples)
    last = ops.last_valid(mask)[..., None]
    final = jnp.sum(reader.samples(next_velocity, grid) * last, axis=1)
    targets = ops.lambda_average(
        steps.rewards,
        reader.samples(velocity, grid),
        mask,
        discount=steps.discount,
        lambda_=lambda_,
        final_values=final * steps.bootstrap[:, None],
    )
    # Quantiles come in order and times are stratified along the same axis: break the tie.
    targets = jax.random.permutation(mix_key, targets, axis=-1, independent=True)
    return reader.clipped(targets)


def flow_losses(
    config: Any,
    keys: Array,
    fields: Fields,
    targets: Array,
    steps: Steps,
    has_successor: Array,
    weight: Array,
) -> dict[str, Loss]:
    """Every critic loss that has a weight.

    Args:
      config: which losses, and how.
      keys: [B], one per row, of its noise and times.
      fields: the velocities.
      targets: [B, R, S] return samples.
      steps: rewards and discount.
      has_successor: [B, R], 1 where the state after a token has a return of its own.
      weight: [B, R] uncertainty weight of anchor and flow matching.
    """
    shape, (live, old, next_old) = targets.shape, fields
    keys = jax.vmap(jax.random.split, (0, None), 1)(keys, 6)
    solver = {"num_steps": config.num_steps, "solver": config.solver, "clip": config.reader.clip}
    losses = {}
    if config.anchor_weight > 0:
        noise = draw(jax.random.normal, keys[0], shape)
        times = draw(ops.stratified_times, keys[1], shape)
        anchor = ops.anchor_loss(live, targets, noise, times)
        losses["anchor"] = Loss(anchor * weight, weight=config.anchor_weight)
    if config.dcfm_weight > 0:
        noise = draw(jax.random.normal, keys[2], shape)
        times = draw(ops.stratified_times, keys[3], shape)
        options = {**solver, "discount": steps.discount, "base": config.dcfm_base}
        matching = ops.distributional_cfm_loss(
            live, next_old, steps.rewards, noise, times, **options
        )
        losses["dcfm"] = Loss(matching * weight, has_successor, config.dcfm_weight)
    if config.geometry_weight > 0:
        noise = draw(jax.random.normal, keys[4], shape)
        times = draw(ops.stratified_times, keys[5], shape)
        options = {**solver, "mode": config.geometry, "first_step": config.first_step}
        straight = ops.geometric_consistency_loss(live, old, noise, times, **options)
        losses["geometry"] = Loss(straight, weight=config.geometry_weight)
    return losses | tail_losses(config, live, old, targets)


def tail_losses(config: Any, velocity: Velocity, old: Velocity, targets: Array) -> dict[str, Loss]:
    """Conditional risk and tail shape of the one-step quantiles, those that have a weight (5.4)."""
    weights = tail_weights(config)
    if not any(weights.values()):
        return {}
    grid = noise_grid(targets.shape[:2], config.num_quantiles)
    q = one_step(velocity, grid)
    if config.tail_targets == "flow":
        goal = config.reader.integrated(old, grid)
    else:
        goal = jnp.sort(targets, axis=-1)
    return risk_losses(weights, q, goal, config.tail_alpha, config.tail_beta)
