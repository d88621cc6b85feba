"""FlowRL's balance of a response, and how its importance weights are bounded."""

import math

import chex
import jax
import jax.numpy as jnp

from dfpo_jax.ops.checks import check, check_choice, check_positive
from dfpo_jax.ops.masking import as_float
from dfpo_jax.ops.policy_gradients import MAX_LOG_RATIO
from dfpo_jax.ops.sequences import row_mean, row_sum, sequence_ratio
from dfpo_jax.types import Array

FLOWRL_WEIGHTS = ("clipped", "unclipped", "capped")
FLOWRL_CLAMPS = ("every", "gspo", "dapo")


def flowrl_residual(
    log_z: Array,
    log_probs: Array,
    ref_log_probs: Array,
    scaled_rewards: Array,
    mask: Array,
    *,
    beta: float,
) -> Array:
    """How far a response is off FlowRL's balance, whose square is the loss.

      delta = log_z + mean_t log_probs - beta * scaled_rewards - mean_t ref_log_probs
    with means over valid tokens. It is 0 for every response where
    mean_t log_probs = beta r + mean_t ref_log_probs - log_z, a tilt of the reference per token (not
    exp(beta r) times the reference).
    Source: FlowRL, arXiv 2509.15207, its official code.

    Args:
      log_z: [B] log of the partition function of each row's prompt.
      log_probs: [B, T] of the policy being trained, nats.
      ref_log_probs: [B, T] of the reference, nats; gradient stopped.
      scaled_rewards: [B] rewards relative to the group, see `group_relative`; gradient stopped.
      mask: [B, T], 1 on response tokens.
      beta: positive, nats per unit of the scaled reward.

    Returns:
      [B] float32 or wider, nats; in an empty row log_z - beta r.

    Raises:
      ValueError: if `beta` is not positive.
      AssertionError: if shapes do not match.
    """
    chex.assert_rank([log_z, scaled_rewards], 1)
    chex.assert_equal_shape([log_probs, ref_log_probs, mask])
    chex.assert_equal_shape([log_z, scaled_rewards, mask[:, 0]])
    check_positive("beta", beta)
    stopped = jax.lax.stop_gradient((as_float(ref_log_probs), as_float(scaled_rewards)))
    difference = row_mean(as_float(log_probs) - stopped[0], mask)
    return as_float(log_z) + difference - beta * stopped[1]


def flowrl_log_z(
    ref_log_probs: Array,
    behaviour_log_probs: Array,
    scaled_rewards: Array,
    mask: Array,
    group_size: int,
    *,
    beta: float,
) -> Array:
    """Estimate of FlowRL's log Z from the responses to one prompt, by importance sampling.

      log_z = log mean_k exp(beta r_k + mean_t(ref_log_probs - behaviour_log_probs))
    over the group's responses with a token, with means over their valid tokens. Where the sampler
    is the optimum of `flowrl_residual`, all summands are Z, so the estimate is exact.
    Source: ours, after a summary of DISA, arXiv 2605.17295, whose own estimator is not known.

    Args:
      ref_log_probs: [B, T] of the reference, nats.
      behaviour_log_probs: [B, T] that the sampler reported, nats.
      scaled_rewards: [B]; rows of a group are consecutive.
      mask: [B, T], 1 on response tokens.
      group_size: responses per prompt; divides B (static).
      beta: positive, nats per unit of the scaled reward.

    Returns:
      [B] float32 or wider, without gradient, the same in all rows of a group; 0 in a group without
      tokens.

    Raises:
      ValueError: if `group_size` does not divide B or `beta` is not positive.
      AssertionError: if shapes do not match.
    """
    chex.assert_equal_shape([ref_log_probs, behaviour_log_probs, mask])
    chex.assert_equal_shape([scaled_rewards, mask[:, 0]])
    check_positive("beta", beta)
    batch = mask.shape[0]
    divides = group_size >= 1 and batch % group_size == 0
    check(divides, "group_size", group_size, f"a divisor of the batch, {batch}")
    difference = row_mean(as_float(ref_log_probs) - as_float(behaviour_log_probs), mask)
    there = jnp.any(jnp.asarray(mask).astype(bool), axis=1).reshape(-1, group_size)
    logs = (beta * as_float(scaled_rewards) + difference).reshape(-1, group_size)
    some = jnp.any(there, axis=1, keepdims=True)
    # Where nothing is there, a sum of no terms would be -inf.
    total = jax.nn.logsumexp(logs, axis=1, keepdims=True, where=there | ~some)
    count = jnp.maximum(jnp.sum(there, axis=1, keepdims=True, dtype=logs.dtype), 1)
    log_z = jnp.where(some, total - jnp.log(count), 0)
    return jax.lax.stop_gradient(jnp.broadcast_to(log_z, logs.shape).reshape(-1))


def flowrl_weights(
    log_probs: Array,
    old_log_probs: Array,
    mask: Array,
    *,
    kind: str = "clipped",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    cap: float = 10.0,
) -> Array:
    """Importance weights of responses in FlowRL's loss.

    With w the product of the ratios of a response's tokens, its exponent clamped to +-20,
      "clipped": clip(w, 1 - clip_low, 1 + clip_high)      the paper
      "unclipped": w                                       its first official code
      "capped": min(w, cap)                                its later official code, in verl
    Source: FlowRL, arXiv 2509.15207. The three sources differ from one another.

    Args:
      log_probs: [B, T] of the policy being trained, nats.
      old_log_probs: [B, T] at the start of the iteration, nats.
      mask: [B, T], 1 on response tokens.
      kind: "clipped", "unclipped" or "capped".
      clip_low: in [0, 1).
      clip_high: at least 0.
      cap: positive.

    Returns:
      [B] float32 or wider, without gradient; 1 in an empty row (with a cap of at least 1).

    Raises:
      ValueError: if an option is outside its range.
      AssertionError: if shapes differ.
    """
    chex.assert_equal_shape([log_probs, old_log_probs, mask])
    check_choice("kind", kind, FLOWRL_WEIGHTS)
    _check_bounds(clip_low, clip_high)
    check_positive("cap", cap)
    total = row_sum(as_float(log_probs) - as_float(old_log_probs), mask)
    weights = jnp.exp(jnp.clip(total, -MAX_LOG_RATIO, MAX_LOG_RATIO))
    if kind == "clipped":
        weights = jnp.clip(weights, 1 - clip_low, 1 + clip_high)
    elif kind == "capped":
        weights = jnp.minimum(weights, cap)
    return jax.lax.stop_gradient(weights)


def flowrl_clamp(
    log_probs: Array,
    old_log_probs: Array,
    scaled_rewards: Array,
    mask: Array,
    *,
    kind: str = "every",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Array:
    """Log-probabilities whose mean over a response stays near the old one.

    Where a response is clamped, its mean is
    `clip(mean_t log_probs, old mean + log(1 - clip_low), old mean + log(1 + clip_high))`, which has
    no gradient outside the interval. With rho the ratio of a token, s the geometric mean of a
    response's and r the scaled reward, clamped are
      "every": all responses
      "gspo": those with -r clip(s, 1 - clip_low, 1 + clip_high) > -r s
      "dapo": those where the same holds for rho in place of s at more than half of the tokens.
    Source: variants that FlowRL's author left commented out in a fork of verl (volcengine/verl,
    recipe/flowrl/functions.py, commit 11fba5b5). There "dapo" reads a ratio that is defined in no
    line; the token's own is our reading.

    Args:
      log_probs: [B, T] of the policy being trained, nats.
      old_log_probs: [B, T] at the start of the iteration, nats; gradient stopped.
      scaled_rewards: [B]; gradient stopped.
      mask: [B, T], 1 on response tokens.
      kind: "every", "gspo" or "dapo".
      clip_low: in [0, 1).
      clip_high: at least 0.

    Returns:
      [B, T] float32 or wider; in a clamped response every token holds the clamped mean.

    Raises:
      ValueError: if an option is outside its range.
      AssertionError: if shapes do not match.
    """
    chex.assert_equal_shape([log_probs, old_log_probs, mask])
    chex.assert_equal_shape([scaled_rewards, mask[:, 0]])
    check_choice("kind", kind, FLOWRL_CLAMPS)
    _check_bounds(clip_low, clip_high)
    log_probs, old = as_float(log_probs), jax.lax.stop_gradient(as_float(old_log_probs))
    rewards = jax.lax.stop_gradient(as_float(scaled_rewards))

    def gains(ratio: Array, rewards: Array) -> Array:
        return -rewards * jnp.clip(ratio, 1 - clip_low, 1 + clip_high) > -rewards * ratio

    if kind == "every":
        chosen = jnp.ones_like(rewards, bool)
    elif kind == "gspo":
        chosen = gains(sequence_ratio(log_probs, old, mask), rewards)
    else:
        ratio = jnp.exp(jnp.clip(log_probs - old, -MAX_LOG_RATIO, MAX_LOG_RATIO))
        votes = gains(ratio, rewards[:, None]).astype(jnp.float32)
        chosen = row_mean(votes, mask) > 0.5
    bounds = math.log(1 - clip_low), math.log(1 + clip_high)
    old_mean = row_mean(old, mask)
    mean = jnp.clip(row_mean(log_probs, mask), old_mean + bounds[0], old_mean + bounds[1])
    return jnp.where(chosen[:, None], mean[:, None], log_probs)


def _check_bounds(clip_low: float, clip_high: float) -> None:
    check(0 <= clip_low < 1, "clip_low", clip_low, "at least 0 and below 1")
    check(clip_high >= 0, "clip_high", clip_high, "at least 0")
