"""Statistics of whole responses: their sums, means and importance weights.

Values of rows, [B], are unreduced too; a row without valid tokens has a sum and a mean of 0.
"""

import chex
import jax
import jax.numpy as jnp

from dfpo_jax.ops.checks import check
from dfpo_jax.ops.masking import as_float, masked_sum_and_count
from dfpo_jax.ops.policy_gradients import MAX_LOG_RATIO
from dfpo_jax.types import Array

MAX_LOG_WEIGHT = 30.0


def _row_sums(x: Array, mask: Array) -> tuple[Array, Array]:
    chex.assert_rank([x, mask], 2)
    chex.assert_equal_shape([x, mask])
    return jax.vmap(masked_sum_and_count)(x, mask)


def row_sum(x: Array, mask: Array) -> Array:
    """Sum of the valid elements of each row; 0 in an empty row.

    Args:
      x: [B, T] values.
      mask: [B, T], 1 on valid elements.

    Returns:
      [B] float32 or wider, in the units of `x`.

    Raises:
      AssertionError: if the shapes differ or are not of rank 2.
    """
    return _row_sums(x, mask)[0]


def row_mean(x: Array, mask: Array) -> Array:
    """Mean of the valid elements of each row; 0 in an empty row.

    Args:
      x: [B, T] values.
      mask: [B, T], 1 on valid elements.

    Returns:
      [B] float32 or wider, in the units of `x`.

    Raises:
      AssertionError: if the shapes differ or are not of rank 2.
    """
    total, count = _row_sums(x, mask)
    return total / jnp.maximum(count, 1)


def sequence_ratio(log_probs: Array, old_log_probs: Array, mask: Array) -> Array:
    """Importance ratio of a response, per token: the geometric mean of its tokens' ratios.

    `s = exp(mean_t(log_probs - old_log_probs))` over the valid tokens, the exponent clamped to +-20
    (zero gradient beyond).
    Source: GSPO, Zheng et al. 2025, arXiv 2507.18071, eq. 7; the clamp is ours.

    Args:
      log_probs: [B, T] of the policy being trained, nats.
      old_log_probs: [B, T] at the start of the iteration; gradient stopped.
      mask: [B, T], 1 on response tokens.

    Returns:
      [B] float32 or wider; 1 in an empty row.

    Raises:
      AssertionError: if shapes differ.
    """
    chex.assert_equal_shape([log_probs, old_log_probs, mask])
    difference = as_float(log_probs) - jax.lax.stop_gradient(as_float(old_log_probs))
    return jnp.exp(jnp.clip(row_mean(difference, mask), -MAX_LOG_RATIO, MAX_LOG_RATIO))


def sequence_weight(log_probs: Array, behaviour_log_probs: Array, mask: Array) -> Array:
    """Importance weight of a response: the product of its tokens' ratios.

    `w = exp(sum_t(log_probs - behaviour_log_probs))` over the valid tokens, the sum clamped to
    +-30. There w is 1e13 and its square 1e26, so that means over any batch stay finite.
    Source: VCPO, arXiv 2602.17616, its official code; the clamp is ours.

    Args:
      log_probs: [B, T] of the policy being trained, nats.
      behaviour_log_probs: [B, T] of the policy that sampled, nats.
      mask: [B, T], 1 on response tokens.

    Returns:
      [B] float32 or wider, without gradient; 1 in an empty row.

    Raises:
      AssertionError: if shapes differ.
    """
    chex.assert_equal_shape([log_probs, behaviour_log_probs, mask])
    total = row_sum(as_float(log_probs) - as_float(behaviour_log_probs), mask)
    return jax.lax.stop_gradient(jnp.exp(jnp.clip(total, -MAX_LOG_WEIGHT, MAX_LOG_WEIGHT)))


def effective_sample_size(log_weights: Array) -> Array:
    """Share of a batch that is left after importance weighting.

    `(sum w)^2 / (B sum w^2)` with w = exp(log_weights): 1 where all weights are equal, as they are
    on-policy, and 1/B where one weight owns the batch. The largest log-weight is subtracted first,
    so that huge ones do not overflow.
    Source: Kish's effective sample size, as VCPO uses it, arXiv 2602.17616.

    Args:
      log_weights: [B], nats, B at least 1; those of -inf count as weights of 0, but not all may be
        -inf, nor any +inf.

    Returns:
      [] float32 or wider in (0, 1], without gradient.

    Raises:
      ValueError: if there is no weight.
      AssertionError: if `log_weights` is not a vector.
    """
    chex.assert_rank(log_weights, 1)
    size = log_weights.shape[0]
    check(size >= 1, "log_weights", log_weights.shape, "at least one weight")
    log_weights = jax.lax.stop_gradient(as_float(log_weights))
    weights = jnp.exp(log_weights - jnp.max(log_weights))
    share = jnp.square(jnp.sum(weights)) / (size * jnp.sum(jnp.square(weights)))
    return jnp.minimum(share, 1)  # rounding may exceed it
