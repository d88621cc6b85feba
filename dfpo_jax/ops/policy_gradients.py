"""Token log-probabilities, clipped policy-gradient losses and importance weights.

Losses are unreduced, [B, T], and take no mask; reduce them with the functions of masking.py.
"""

import math

import chex
import jax
import jax.numpy as jnp

from dfpo_jax.ops.checks import check, check_positive, check_unit_interval
from dfpo_jax.ops.masking import as_float
from dfpo_jax.types import Array

MAX_LOG_RATIO = 20.0


def token_log_probs(logits: Array, tokens: Array, *, temperature: float = 1.0) -> Array:
    """Log-probability of each token: its scaled logit minus the log of the partition function.

    `log p(y_i) = l_i[y_i] / temperature - logsumexp(l_i / temperature)`, in float32 whatever the
    type of the logits. The token's logit is gathered, without a one-hot array of vocabulary size.

    Args:
      logits: [B, T, V]; `logits[:, i]` predicts `tokens[:, i]`.
      tokens: [B, T] integers in [0, V); an id of V or more gives NaN.
      temperature: divides the logits; use the sampler's to compare with its log-probabilities.

    Returns:
      [B, T] float32 or wider, nats.

    Raises:
      ValueError: if `temperature` is not positive and finite.
      AssertionError: if shapes or types do not match.
    """
    chex.assert_rank([logits, tokens], [3, 2])
    chex.assert_equal_shape_prefix([logits, tokens], 2)
    chex.assert_type(tokens, int)
    check(0 < temperature < math.inf, "temperature", temperature, "positive and finite")
    logits = as_float(logits) / temperature
    # Shift before subtracting the logarithm: the difference of two large numbers loses digits.
    logits = logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    chosen = jnp.take_along_axis(logits, jnp.asarray(tokens)[..., None], axis=-1)[..., 0]
    return chosen - jnp.log(jnp.sum(jnp.exp(logits), axis=-1))


def _ratio(log_probs: Array, other_log_probs: Array) -> Array:
    """exp(log_probs - other), with the exponent clamped to +-20 so that it cannot overflow."""
    difference = as_float(log_probs) - as_float(other_log_probs)
    return jnp.exp(jnp.clip(difference, -MAX_LOG_RATIO, MAX_LOG_RATIO))


def ppo_clip(
    log_probs: Array,
    old_log_probs: Array,
    advantages: Array,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> Array:
    """Clipped surrogate loss per token.

    With rho = exp(log_probs - old_log_probs), exponent clamped to +-20 (zero gradient beyond),
      loss = -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A),
    and where A < 0 and `dual_clip` = c is given, loss = min(loss, -c A).
    Sources: Schulman et al. 2017, arXiv 1707.06347, eq. 7; the dual clip, Ye et al. 2020,
    arXiv 1912.09729; unequal bounds, DAPO, Yu et al. 2025, arXiv 2503.14476, section 3.1.

    Args:
      log_probs: [B, T] of the policy being trained, nats.
      old_log_probs: [B, T] at the start of the iteration; gradient stopped.
      advantages: [B, T]; gradient stopped.
      clip_low: in [0, 1].
      clip_high: at least 0.
      dual_clip: above 1, or None for no dual clip.

    Returns:
      [B, T] unreduced loss, in units of the advantage.

    Raises:
      ValueError: if a bound is outside its range.
      AssertionError: if shapes differ.
    """
    chex.assert_equal_shape([log_probs, old_log_probs, advantages])
    check_unit_interval("clip_low", clip_low)
    check(clip_high >= 0, "clip_high", clip_high, "at least 0")
    check(dual_clip is None or dual_clip > 1, "dual_clip", dual_clip, "None or above 1")
    advantages = jax.lax.stop_gradient(as_float(advantages))
    ratio = _ratio(log_probs, jax.lax.stop_gradient(old_log_probs))
    clipped = jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
    loss = -jnp.minimum(ratio * advantages, clipped * advantages)
    if dual_clip is not None:
        loss = jnp.where(advantages < 0, jnp.minimum(loss, -dual_clip * advantages), loss)
    return loss


def clip_fraction(
    log_probs: Array,
    old_log_probs: Array,
    advantages: Array,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Array:
    """Marks the tokens whose gradient `ppo_clip` removes, ignoring the dual clip; a metric.

    1 where A > 0 and rho > 1 + clip_high, or A < 0 and rho < 1 - clip_low. Ours.

    Args:
      log_probs: [B, T], nats.
      old_log_probs: [B, T], nats.
      advantages: [B, T].
      clip_low: in [0, 1].
      clip_high: at least 0.

    Returns:
      [B, T] float32, 0 or 1, without gradient.

    Raises:
      ValueError: if a bound is outside its range.
      AssertionError: if shapes differ.
    """
    chex.assert_equal_shape([log_probs, old_log_probs, advantages])
    check_unit_interval("clip_low", clip_low)
    check(clip_high >= 0, "clip_high", clip_high, "at least 0")
    advantages = jnp.asarray(advantages)
    ratio = _ratio(log_probs, old_log_probs)
    above = (advantages > 0) & (ratio > 1 + clip_high)
    below = (advantages < 0) & (ratio < 1 - clip_low)
    return (above | below).astype(jnp.float32)


def truncated_importance_weights(
    log_probs: Array, behaviour_log_probs: Array, *, cap: float = 2.0
) -> Array:
    """Weights that correct for a sampler whose distribution differs from the trainer's.

    `w = min(exp(log_probs - behaviour_log_probs), cap)`, exponent clamped to +-20, no gradient.
    Source: truncated importance sampling, Ionides 2008, Journal of Computational and Graphical
    Statistics 17(2); a constant cap per token is common practice in language-model training.

    Args:
      log_probs: [B, T] of the trainer at the start of the iteration, nats.
      behaviour_log_probs: [B, T] that the sampler reported, nats.
      cap: positive.

    Returns:
      [B, T] weights in (0, cap], without gradient.

    Raises:
      ValueError: if `cap` is not positive.
      AssertionError: if shapes differ.
    """
    chex.assert_equal_shape([log_probs, behaviour_log_probs])
    check_positive("cap", cap)
    return jax.lax.stop_gradient(jnp.minimum(_ratio(log_probs, behaviour_log_probs), cap))


def cispo(
    log_probs: Array,
    old_log_probs: Array,
    advantages: Array,
    *,
    clip_low: float = 1.0,
    clip_high: float = 2.0,
) -> Array:
    """Policy gradient whose importance weights are clipped; no token loses its gradient.

    `loss = -sg(clip(rho, 1 - clip_low, 1 + clip_high)) A log_probs` with
    rho = exp(log_probs - old_log_probs), exponent clamped to +-20, and sg the stopped gradient.
    Source: CISPO, MiniMax-M1, arXiv 2506.13585, section 3.1.

    Args:
      log_probs: [B, T] of the policy being trained, nats.
      old_log_probs: [B, T] at the start of the iteration; gradient stopped.
      advantages: [B, T]; gradient stopped.
      clip_low: in [0, 1]; 1 for no lower bound.
      clip_high: at least 0.

    Returns:
      [B, T] unreduced loss, in units of the advantage times nats.

    Raises:
      ValueError: if a bound is outside its range.
      AssertionError: if shapes differ.
    """
    chex.assert_equal_shape([log_probs, old_log_probs, advantages])
    check_unit_interval("clip_low", clip_low)
    check(clip_high >= 0, "clip_high", clip_high, "at least 0")
    ratio = jnp.clip(_ratio(log_probs, old_log_probs), 1 - clip_low, 1 + clip_high)
    return -jax.lax.stop_gradient(ratio * as_float(advantages)) * as_float(log_probs)


def expert_exploration(
    log_probs: Array,
    expert_log_probs: Array,
    correct: Array,
    advantages: Array,
    *,
    slope: float = 0.5,
) -> Array:
    """CalibRL's guide: how likely the policy's tokens should be, against an expert's.

    With d = log_probs - expert_log_probs and s = 1 for a correct response, -1 for a wrong one,
      loss = |A| LeakyReLU(-s d),
    whose slope below 0 is `slope`: a correct response that is less likely than the expert's is
    raised with the full gradient and one that is likelier with `slope` times it; a wrong response
    is lowered likewise.
    Source: CalibRL, arXiv 2602.20197, its official code.

    Args:
      log_probs: [B, T] of the policy being trained, nats.
      expert_log_probs: [B, T] of the expert's tokens at the same positions under the old policy,
        nats, 0 where the expert has none; gradient stopped.
      correct: [B] bool, whether the response is correct.
      advantages: [B, T]; gradient stopped.
      slope: positive, at most 1.

    Returns:
      [B, T] unreduced loss, in units of the advantage times nats.

    Raises:
      ValueError: if `slope` is not positive or above 1.
      AssertionError: if shapes do not match.
    """
    chex.assert_equal_shape([log_probs, expert_log_probs, advantages])
    chex.assert_rank([correct, log_probs], [1, 2])
    chex.assert_equal_shape_prefix([correct, log_probs], 1)
    check_positive("slope", slope)
    check(slope <= 1, "slope", slope, "above 0 and at most 1")
    expert = jax.lax.stop_gradient(as_float(expert_log_probs))
    difference = as_float(log_probs) - expert
    weights = jnp.abs(jax.lax.stop_gradient(as_float(advantages)))
    sign = jnp.where(jnp.asarray(correct).astype(bool), 1.0, -1.0)[:, None]
    return weights * jax.nn.leaky_relu(-sign * difference, slope)
