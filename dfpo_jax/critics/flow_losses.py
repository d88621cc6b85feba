"""Critic losses and targets of value flows as functions of velocities, which know no network.

Distributional Value Flow Policy Optimization, arXiv 2602.05890; the equations are a reconstruction,
see the README. `config` is `critics.flow.Flow` everywhere.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dfpo_jax import ops
from dfpo_jax.critics.flow_inference import Reader, noise_grid, one_step
from dfpo_jax.critics.interface import draw, mixed_returns
from dfpo_jax.critics.tails import risk_losses, tail_weights
from dfpo_jax.critics.units import AFFINE, Units
from dfpo_jax.metric import Metric
from dfpo_jax.models.value_flow import Velocity
from dfpo_jax.types import Array, Loss, Steps

TARGET_MODES = ("mixture", "average", "flowcritic")
ANCHOR = Metric(
    "critic/anchor",
    "How far the flow's velocity is from the one that leads to the sampled return: mean square "
    "over tokens, noises and times, in squared units that the critic learns in.",
    formula="`w |v(z_t, t, 0) - (y - eps)|^2`, `z_t = (1 - t) eps + t y`, with samples y of the "
    "return (one number per token with the critic `scalar_flow`) and the uncertainty weight w",
    healthy="It falls from 1 + mean y^2, where the head starts, to a plateau that is no fault: 0 "
    "where the return of every state is certain, pi / 2 where it is N(0, 1).",
    advice="Where it does not fall, raise `critic_optimizer.learning_rate` or the "
    "critic's `num_samples`. Where it is far above 2, returns lie outside the units: set "
    "`critic.units=asinh`, the critic's `value_bound` or `rewards.clip.bound`. Whether the plateau "
    "is good, `eval/critic/explained_variance` and `eval/critic/crps` say.",
)
METRICS = (
    ANCHOR,
    Metric(
        "critic/dcfm",
        "How far the flow at a state is from the old flow at the next one, moved by the reward: "
        "mean square over tokens with a successor, noises and times, in squared units that the "
        "critic learns in.",
        formula="`w |v(z_t, t, 0) - u|^2`, `z_t = t r + g z'_t + (1 - g)(1 - t) eps`, `u = r + g "
        "v'(z'_t, t, 0) - (1 - g) eps`, with the old flow z', v' at the next state and the "
        "discount g; with `critic.flow.dcfm_base=shift`, `z_t = r + g z'_t` and `u = g v'`",
        healthy="Far below `critic/anchor`: at an optimum it is only what one token tells about "
        "the return.",
        advice="It compares with the old critic alone, so that a small value says nothing about "
        "observed returns. Where it is as large as the anchor, lower `critic.flow.dcfm_weight` or "
        "`critic_optimizer.learning_rate`, and see whether `eval/critic/crps` falls.",
        when="with `critic.flow.dcfm_weight` above 0",
    ),
    Metric(
        "critic/geometry",
        "With `critic.flow.geometry=map`, how far one step lands from where the old flow's "
        "`critic.flow.num_steps` steps land: mean square over tokens and noises, in squared units "
        "that the critic learns in.",
        formula="map: `|v(eps, 0, 1) - (z_1 - eps)|^2`; reflow: the anchor's formula with `y = "
        "z_1`; straight: `|v(eps, 0, 0) - v(z_t, t, 0)|^2`; z the old flow that starts at eps",
        healthy="map: falling, and small beside the variance of the predicted law; its root is "
        "the error of one-step inference. reflow and straight have a floor while paths bend.",
        advice="Where it stays large, `critic.flow.inference=one_step` reads another law than the "
        "flow has: raise `critic.flow.geometry_weight`, train the critic longer "
        "(`critic.warmup`), or read it with `critic.flow.inference=ode`.",
        when="with `critic.flow.geometry_weight` above 0",
    ),
)


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
    units: Units = AFFINE,
) -> tuple[Array, Array | None]:
    """Samples of the return at every state, by the configured target mode, and their noise.

    Args:
      config: number of samples, inference, target mode and noise.
      key: PRNG key.
      velocity: old field at the states before tokens.
      next_velocity: old field at the states after tokens (the next valid ones).
      steps: rewards, mask, bootstraps and discount.
      lambda_: a number or [B].
      units: those of the flow's states.

    Returns:
      ([B, R, S], [B, R, S]). Samples are in value units. The noise is that which the old field
      carried to the bootstrap of a sample; where a return ends without one, it belongs to no value.
      None where losses draw their own.
    """
    reader = dataclasses.replace(config.reader, units=units)
    mask, shared = steps.mask, config.noise == "shared"
    shape = (*steps.rewards.shape, config.num_samples)
    noise_key, mix_key = jax.random.split(key)
    if config.target_mode == "mixture":
        noise = jax.random.normal(noise_key, shape)
        samples = mixed_returns(mix_key, reader.samples(next_velocity, noise), steps, lambda_)
        if shared:  # the same key, so that a noise goes wherever its value does
            ones = jnp.ones_like(steps.bootstrap)
            nothing = jnp.zeros_like(steps.rewards)
            alone = steps.replace(rewards=nothing, bootstrap=ones, discount=1.0)
            noise = mixed_returns(mix_key, noise, alone, lambda_)
        return reader.clipped(samples), noise if shared else None
    if config.target_mode == "flowcritic":
        keys = noise_key, jax.random.fold_in(noise_key, 1)
        noise, after = (jax.random.normal(key, shape) for key in keys)
        samples = _averaged(reader, velocity, next_velocity, noise, after, steps, lambda_)
        return reader.clipped(samples), None
    grid = noise_grid(mask.shape, config.num_samples)
    samples = _averaged(reader, velocity, next_velocity, grid, grid, steps, lambda_)
    # Quantiles come in order and times are stratified along the same axis: break the tie.
    shuffle = functools.partial(jax.random.permutation, mix_key, axis=-1, independent=True)
    return reader.clipped(shuffle(samples)), shuffle(grid) if shared else None


def _averaged(
    reader: Reader,
    velocity: Velocity,
    next_velocity: Velocity,
    noise: Array,
    next_noise: Array,
    steps: Steps,
    lambda_: float | Array,
) -> Array:
    """The lambda-average [B, R, S] of what the field makes of noise, sample by sample.

    With z(s, eps) the end of the flow, zeta_i = r_i + gamma z(s_i+1, eps_i+1) - z(s_i, eps_i) and
    y_i = sum_l (gamma lambda)^l zeta_i+l + z(s_i, eps_i), which equals the recursion of
    `ops.lambda_average`. One noise for all states averages quantile functions. Independent noises
    (FlowCritic, arXiv 2510.22686) also average the noise away: for states with variances v and no
    terminal token, Var y_i = sum_l (gamma^l (1 - lambda) lambda^(l-1))^2 v_i+l.
    """
    last = ops.last_valid(steps.mask)[..., None]
    final = jnp.sum(reader.samples(next_velocity, next_noise) * last, axis=1)
    return ops.lambda_average(
        steps.rewards,
        reader.samples(velocity, noise),
        steps.mask,
        discount=steps.discount,
        lambda_=lambda_,
        final_values=final * steps.bootstrap[:, None],
    )


def uncertainty_weight(config: Any, velocity: Velocity, mask: Array) -> Array:
    """The weight [B, R] of anchor and flow matching, by the old field before tokens.

    The spread is the mean of |dz_1/deps| over S noise quantiles (Value Flows takes one random
    noise), and for the coefficient of variation the deviation of the S values themselves.
    """
    if config.uncertainty == "none":
        return jnp.ones_like(mask)
    mean, num = None, config.num_samples
    if config.uncertainty == "coefficient_of_variation":
        values = config.reader.integrated(velocity, noise_grid(mask.shape, num))
        mean, spread = jnp.mean(values, axis=-1), jnp.std(values, axis=-1)
    else:
        spread = config.reader.spread(velocity, mask.shape, num)
    options = {"mode": config.uncertainty, "temperature": config.uncertainty_temperature}
    return ops.uncertainty_weights(spread, mean=mean, **options)


def flow_losses(
    config: Any,
    keys: Array,
    fields: Fields,
    targets: Array,
    steps: Steps,
    has_successor: Array,
    weight: Array,
    noise: Array | None = None,
) -> dict[str, Loss]:
    """Every critic loss that has a weight, in units of the flow.

    Those of risk and tails too: they compare quantiles with target quantiles, and are 0 where both
    laws are equal, in whichever units. Their squares in value units would leave a batch to its
    states of the largest scale, as cosh(z)^2 would multiply the gradients.

    Args:
      config: which losses, and how.
      keys: [B], one per row, of its noise and times.
      fields: the velocities.
      targets: [B, R, S] return samples, in units of the flow.
      steps: rewards and discount.
      has_successor: [B, R], 1 where the state after a token has a return of its own.
      weight: [B, R] uncertainty weight of anchor and flow matching.
      noise: [B, R, S] the noise that anchor and flow matching share, with one time for both; None
        where each draws its own.
    """
    shape, (live, old, next_old) = targets.shape, fields
    keys = jax.vmap(jax.random.split, (0, None), 1)(keys, 6)
    solver = {"num_steps": config.num_steps, "solver": config.solver, "clip": config.reader.clip}
    losses = {}

    def pair(first):
        if noise is not None:
            return noise, draw(ops.stratified_times, keys[1], shape)
        drawn = draw(jax.random.normal, keys[first], shape)
        return drawn, draw(ops.stratified_times, keys[first + 1], shape)

    if config.anchor_weight > 0:
        anchor = ops.anchor_loss(live, targets, *pair(0))
        losses["anchor"] = Loss(anchor * weight, weight=config.anchor_weight)
    if config.dcfm_weight > 0:
        options = {**solver, "discount": steps.discount, "base": config.dcfm_base}
        matching = ops.distributional_cfm_loss(live, next_old, steps.rewards, *pair(2), **options)
        losses["dcfm"] = Loss(matching * weight, has_successor, config.dcfm_weight)
    if config.geometry_weight > 0:
        start = draw(jax.random.normal, keys[4], shape)
        times = draw(ops.stratified_times, keys[5], shape)
        options = {**solver, "mode": config.geometry, "first_step": config.first_step}
        straight = ops.geometric_consistency_loss(live, old, start, times, **options)
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
