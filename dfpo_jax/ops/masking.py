"""Masked statistics, loss aggregation, and the last valid token of each row.

A mask is 1 (or True) on valid elements. Elements outside it may have any value, even NaN, and
change neither results nor gradients. Statistics are computed in float32 or wider.
"""

import chex
import jax
import jax.numpy as jnp

from dfpo_jax.ops.checks import check_choice, check_unit_interval
from dfpo_jax.types import Array

AGGREGATIONS = ("token_mean", "sequence_mean", "constant_length")
WHITEN_EPS = 1e-8


def as_float(x: Array) -> Array:
    """Returns `x` in float32, or unchanged if it is float64."""
    x = jnp.asarray(x)
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def _select(x: Array, mask: Array) -> Array:
    """Returns `x` as floats with 0 (and a zero gradient) outside the mask."""
    x = as_float(x)
    return jnp.where(jnp.asarray(mask).astype(bool), x, jnp.zeros_like(x))


def masked_sum_and_count(x: Array, mask: Array) -> tuple[Array, Array]:
    """Sum of the valid elements and their number.

    Losses return this pair. The training step adds the pairs of micro-batches and devices and
    divides once, so the mean does not depend on how the batch was split.

    Args:
      x: [...] values.
      mask: [...] same shape, 1 on valid elements.

    Returns:
      ([] sum, [] count), both float32 or wider.

    Raises:
      AssertionError: if the shapes differ.
    """
    chex.assert_equal_shape([x, mask])
    total = jnp.sum(_select(x, mask))
    return total, jnp.sum(jnp.asarray(mask).astype(bool), dtype=total.dtype)


def masked_mean(x: Array, mask: Array) -> Array:
    """Mean of the valid elements, `sum(x mask) / sum(mask)`; 0 if there are none.

    Args:
      x: [...] values.
      mask: [...] same shape.

    Returns:
      [] mean, in the units of `x`.

    Raises:
      AssertionError: if the shapes differ.
    """
    total, count = masked_sum_and_count(x, mask)
    return total / jnp.maximum(count, 1)


def _centred(x: Array, mask: Array) -> Array:
    """Valid elements minus their mean, 0 elsewhere.

    The mean is subtracted twice. The float32 mean of a constant such as 0.1 is not exactly 0.1, and
    whitening would scale up the rounding error that the first subtraction leaves.
    """
    for _ in range(2):
        x = _select(_select(x, mask) - masked_mean(x, mask), mask)
    return x


def masked_var(x: Array, mask: Array) -> Array:
    """Unbiased variance (ddof 1) of the valid elements; 0 with fewer than two of them.

    Args:
      x: [...] values.
      mask: [...] same shape.

    Returns:
      [] variance, in squared units of `x`.

    Raises:
      AssertionError: if the shapes differ.
    """
    chex.assert_equal_shape([x, mask])
    total, count = masked_sum_and_count(jnp.square(_centred(x, mask)), mask)
    return total / jnp.maximum(count - 1, 1)


def explained_variance(predicted: Array, observed: Array, mask: Array) -> Array:
    """1 - Var(observed - predicted) / Var(observed) over the valid elements.

    Args:
      predicted: [...] values.
      observed: [...] same shape, in the same units.
      mask: [...] same shape.

    Returns:
      [], at most 1; 0 for predictions that say no more than their mean, and where `observed` varies
      by no more than rounding does: a millionth of the size of both.

    Raises:
      AssertionError: if the shapes differ.
    """
    chex.assert_equal_shape([predicted, observed, mask])
    variance = masked_var(observed, mask)
    left = masked_var(observed - predicted, mask)
    size = masked_mean(jnp.square(observed) + jnp.square(predicted), mask)
    varies = variance > 1e-12 * size
    return jnp.where(varies, 1.0 - left / jnp.where(varies, variance, 1.0), 0.0)


def lowest_share(x: Array, mask: Array, share: float) -> Array:
    """1 on the given share of the valid elements, those whose `x` is smallest; 0 elsewhere.

    Args:
      x: [...] values.
      mask: [...] same shape.
      share: in [0, 1]; of n valid elements, floor(share n) are marked, and more where others equal
        the largest of them.

    Returns:
      [...] float32.

    Raises:
      ValueError: if `share` is outside [0, 1].
      AssertionError: if the shapes differ.
    """
    chex.assert_equal_shape([x, mask])
    check_unit_interval("share", share)
    valid = jnp.asarray(mask).astype(bool)
    ordered = jnp.sort(jnp.where(valid, x, jnp.inf), axis=None)
    count = jnp.floor(share * jnp.sum(valid, dtype=jnp.float32) + 1e-4).astype(jnp.int32)
    marked = valid & (x <= ordered[jnp.maximum(count - 1, 0)]) & (count > 0)
    return marked.astype(jnp.float32)


def masked_whiten(x: Array, mask: Array) -> Array:
    """Shifts and scales the valid elements to mean 0 and variance 1.

    `(x - mean) / sqrt(var + 1e-8)`; a constant input gives 0, not NaN.

    Args:
      x: [...] values.
      mask: [...] same shape.

    Returns:
      [...] whitened values, dimensionless, 0 outside the mask.

    Raises:
      AssertionError: if the shapes differ.
    """
    chex.assert_equal_shape([x, mask])
    return _centred(x, mask) * jax.lax.rsqrt(masked_var(x, mask) + WHITEN_EPS)


def aggregate_weights(mask: Array, mode: str) -> tuple[Array, Array]:
    """Weights and count that reduce per-token losses to one number.

    loss = sum(x * weights) / max(count, 1); an empty mask gives 0.
      "token_mean": every valid token has the same weight; count = number of valid tokens.
      "sequence_mean": mean over non-empty sequences of their token means; count = their number.
      "constant_length": mean over non-empty sequences of their token sums divided by T, so that a
        token's weight depends on no length (Dr. GRPO, arXiv 2503.20783, section 3.2); count = the
        number of non-empty sequences.
    In all modes, sums and counts of micro-batches add up to those of the whole batch.

    Args:
      mask: [B, T], 1 on valid tokens.
      mode: one of them.

    Returns:
      ([B, T] weights, 0 outside the mask; [] count).

    Raises:
      ValueError: if `mode` is another.
      AssertionError: if the mask is not of rank 2.
    """
    chex.assert_rank(mask, 2)
    check_choice("mode", mode, AGGREGATIONS)
    weights = jnp.asarray(mask).astype(bool).astype(jnp.float32)
    if mode == "token_mean":
        return weights, jnp.sum(weights)
    lengths = jnp.sum(weights, axis=1, keepdims=True)
    non_empty = jnp.sum(lengths > 0, dtype=jnp.float32)
    if mode == "constant_length":
        return weights / max(mask.shape[1], 1), non_empty
    return weights / jnp.maximum(lengths, 1), non_empty


def last_valid(mask: Array) -> Array:
    """One-hot mask of the last valid token of each row; all 0 in an empty row.

    Args:
      mask: [B, T]; holes are allowed.

    Returns:
      [B, T] float32.

    Raises:
      AssertionError: if the mask is not of rank 2.
    """
    chex.assert_rank(mask, 2)
    valid = jnp.asarray(mask).astype(bool)
    valid_from_here = jax.lax.cumsum(valid.astype(jnp.int32), axis=1, reverse=True)
    return (valid & (valid_from_here == 1)).astype(jnp.float32)


def place_at_last(values: Array, mask: Array) -> Array:
    """Puts one value per row on the row's last valid token (never on padding).

    Args:
      values: [B], such as rewards of whole responses.
      mask: [B, T]; holes are allowed. The value of an empty row is dropped.

    Returns:
      [B, T] float32 or wider, 0 elsewhere.

    Raises:
      AssertionError: if shapes do not match.
    """
    chex.assert_rank([values, mask], [1, 2])
    chex.assert_equal_shape_prefix([values, mask], 1)
    return _select(jnp.broadcast_to(jnp.asarray(values)[:, None], mask.shape), last_valid(mask))
