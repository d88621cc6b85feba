"""Quantile grids, quantile regression, and scores of a distribution given as quantiles.

M quantiles belong to the levels (j - 1/2) / M, j = 1..M, the midpoints of M equal shares, unless
said.
"""

import chex
import jax
import jax.numpy as jnp

from dfpo_jax.ops.checks import check, check_choice, check_unit_interval
from dfpo_jax.ops.masking import as_float
from dfpo_jax.types import Array

_UNROLL = 8  # targets that a turn of the loop over them takes in one pass over the quantiles
QUANTILE_LEVELS = ("midpoint", "right")


def quantile_levels(num: int, kind: str = "midpoint") -> Array:
    """Levels of `num` quantiles, j = 1..num: `(j - 1/2) / num`, or `j / num`.

    Args:
      num: how many, at least 1 (static).
      kind: where each lies in its share of the mass, one of `QUANTILE_LEVELS` (static): "midpoint",
        or "right", its upper end, with which the last level is 1.

    Returns:
      [num] increasing, in (0, 1].

    Raises:
      ValueError: if `num` is below 1, or `kind` is not allowed.
    """
    check(num >= 1, "num", num, "at least 1")
    check_choice("kind", kind, QUANTILE_LEVELS)
    return (jnp.arange(num, dtype=jnp.float32) + (0.5 if kind == "midpoint" else 1.0)) / num


def noise_quantiles(num: int) -> Array:
    """Standard normal quantiles `Phi^{-1}((j - 1/2) / num)`, exactly antithetic.

    A one-dimensional flow cannot change their order, so it maps them to the quantiles of the law
    that it represents.

    Args:
      num: how many, at least 1 (static).

    Returns:
      [num] increasing, symmetric about 0.

    Raises:
      ValueError: if `num` is below 1.
    """
    noise = jax.scipy.special.ndtri(quantile_levels(num))
    return (noise - noise[::-1]) / 2


def bernoulli_quantiles(probabilities: Array, num: int) -> Array:
    """Quantiles of 1 with a probability and else 0: `clip(num p - (num - j), 0, 1)`, j = 1..num.

    The one at the border between 0s and 1s lies between them, so that the mean is p whatever `num`.

    Args:
      probabilities: [...] in [0, 1].
      num: M, at least 1 (static).

    Returns:
      [..., M] float32 or wider, sorted ascending, in [0, 1].

    Raises:
      ValueError: if `num` is below 1.
    """
    check(num >= 1, "num", num, "at least 1")
    probabilities = as_float(probabilities)
    above = jnp.arange(num - 1, -1, -1, dtype=probabilities.dtype)  # quantiles above each
    above = above.reshape(*(1,) * probabilities.ndim, num)
    return jnp.clip(num * probabilities[..., None] - above, 0, 1)


def quantile_at(quantiles: Array, level: float) -> Array:
    """The quantile at any level, linear between those given and constant beyond them.

    Args:
      quantiles: [..., M] ascending, at the levels (j - 1/2) / M.
      level: in [0, 1] (static).

    Returns:
      [...] float32 or wider, in units of the quantiles.

    Raises:
      ValueError: `level` is outside [0, 1].
    """
    check_unit_interval("level", level)
    quantiles, last = as_float(quantiles), quantiles.shape[-1] - 1
    place = min(max(level * (last + 1) - 0.5, 0.0), float(last))
    below = int(place)
    share = place - below
    return (1.0 - share) * quantiles[..., below] + share * quantiles[..., min(below + 1, last)]


def quantile_huber(quantiles: Array, targets: Array, taus: Array, kappa: float = 1.0) -> Array:
    """Huber quantile-regression loss, averaged over all pairs of quantile and target.

    With u = target_k - quantile_j and H the Huber function of threshold kappa,
      loss = mean_{j,k} |tau_j - 1{u < 0}| H(u) / kappa;   kappa = 0: mean |tau_j - 1{u < 0}| |u|.
    Source: Dabney et al. 2017, arXiv 1710.10044, eqs. 9-10, with the division by kappa of Dabney
    et al. 2018, arXiv 1806.06923, eq. 3, so that kappa = 0 is the limit. They sum over j.

    Args:
      quantiles: [..., M] predictions.
      targets: [..., K] samples or quantiles of the target; stopped.
      taus: [M] levels of the predictions, or [..., M], those of each; stopped.
      kappa: at least 0, in the units of the quantiles (static).

    Returns:
      [...] float32 or wider, in units of the quantiles (squared over kappa for small errors).

    Raises:
      ValueError: if `kappa` is negative.
      AssertionError: if shapes do not match.
    """
    return jnp.mean(quantile_huber_by_level(quantiles, targets, taus, kappa), axis=-1)


def quantile_huber_by_level(
    quantiles: Array, targets: Array, taus: Array, kappa: float = 1.0
) -> Array:
    """The terms of `quantile_huber` by quantile, averaged over the targets: [..., M].

    Their mean over the quantiles is that loss, to which weights of quantiles can be given so.
    Arguments, source and errors are those of `quantile_huber`.

    A loop over the targets adds up the terms and their slopes in the quantiles at once: the pairs
    of 200 quantiles and 200 targets, 160 kB per token, never exist, and the backward pass costs
    nothing. Only the first derivative is defined.
    """
    chex.assert_equal_shape_prefix([quantiles, targets], quantiles.ndim - 1)
    chex.assert_equal_rank([quantiles, targets])
    chex.assert_shape(taus, quantiles.shape if taus.ndim > 1 else quantiles.shape[-1:])
    check(kappa >= 0, "kappa", kappa, "at least 0")
    quantiles = as_float(quantiles)
    targets, taus, fixed = jax.lax.stop_gradient((as_float(targets), as_float(taus), quantiles))

    def add(sums, target):
        error = target[..., None] - fixed
        weight = jnp.where(error < 0, 1.0 - taus, taus)
        if kappa > 0:
            # The error is clamped first, so that a huge one cannot overflow the square.
            slope = jnp.clip(error, -kappa, kappa) / kappa
            size = slope * (error - 0.5 * kappa * slope)
        else:
            slope, size = jnp.sign(error), jnp.abs(error)
        return (sums[0] + weight * size, sums[1] - weight * slope), None

    zeros = jnp.zeros_like(fixed)
    (terms, slopes), _ = jax.lax.scan(
        add, (zeros, zeros), jnp.moveaxis(targets, -1, 0), unroll=_UNROLL
    )
    # The second summand is 0 and has the slopes as its gradient.
    return (terms + slopes * (quantiles - fixed)) / targets.shape[-1]


def head_consistency(heads: Array) -> Array:
    """Mean squared distance of two heads' quantiles, over all pairs of heads.

    `2 / (N (N - 1)) sum_{i < k} sum_j (q_ij - q_kj)^2`, as `2 / (N - 1) sum_i |q_i - mean|^2`.
    DVPO, arXiv 2512.03847, eq. 10, from third-party code; the paper was not read.

    Args:
      heads: [..., N, M], N heads of M quantiles each, N at least 2. No head is a target: gradients
        reach all.

    Returns:
      [...] float32 or wider, in squared units of the quantiles.

    Raises:
      ValueError: if there are fewer than two heads.
    """
    num = heads.shape[-2]
    check(num >= 2, "the number of heads", num, "at least 2")
    heads = as_float(heads)
    spread = jnp.square(heads - jnp.mean(heads, axis=-2, keepdims=True))
    return 2.0 / (num - 1) * jnp.sum(spread, axis=(-2, -1))


def wasserstein1(q: Array, q_target: Array) -> Array:
    """Wasserstein-1 distance between two distributions with the same number of quantiles.

    `mean_j |q_j - q_target_j|`, both sorted: the area between the two quantile functions.

    Args:
      q: [..., M] ascending.
      q_target: [..., M] ascending; stopped.

    Returns:
      [...] float32 or wider, in units of the quantiles.

    Raises:
      AssertionError: if shapes differ.
    """
    chex.assert_equal_shape([q, q_target])
    return jnp.mean(jnp.abs(as_float(q) - jax.lax.stop_gradient(as_float(q_target))), axis=-1)


def crps(samples: Array, x: Array) -> Array:
    """Continuous ranked probability score of an ensemble against an observation.

    `mean_s |s - x| - 1/2 mean_{s,s'} |s - s'|` over all S^2 pairs, including s = s'. This is the
    exact score of the empirical distribution, not the "fair" estimate that divides by S (S - 1).
    Sorting the samples gives the double sum as `sum_i (2 i - S + 1) s_(i)` in S log S time.
    Source: Gneiting and Raftery 2007, JASA 102(477), eq. 21.

    Args:
      samples: [..., S] in any order.
      x: [...] observed values; stopped.

    Returns:
      [...] float32 or wider, in units of the samples; lower is better, 0 is perfect.

    Raises:
      AssertionError: if shapes do not match.
    """
    _check_observation(samples, x)
    num = samples.shape[-1]
    errors = jnp.sort(as_float(samples) - jax.lax.stop_gradient(as_float(x))[..., None], axis=-1)
    ranks = (2 * jnp.arange(num, dtype=errors.dtype) - (num - 1)) / num
    ranks = ranks.reshape((1,) * (errors.ndim - 1) + (-1,))
    return jnp.mean(jnp.abs(errors) - ranks * errors, axis=-1)


def cdf(quantiles: Array, x: Array, bandwidth: float = 0.0) -> Array:
    """Distribution function at `x`: the share of the quantiles below it, counting ties by half.

    With a bandwidth h it is that of a uniform kernel on [-h, h] around every quantile, the mean of
    (1 + clip((x - q) / h, -1, 1)) / 2. Where all |x - q| <= h it is linear in x - mean(q).

    Args:
      quantiles: [..., M] in any order.
      x: [...] points.
      bandwidth: h >= 0, in the units of `x`.

    Returns:
      [...] float32 in [0, 1], without gradient.

    Raises:
      AssertionError: if shapes do not match.
    """
    _check_observation(quantiles, x)
    difference = as_float(x)[..., None] - as_float(quantiles)
    if bandwidth > 0.0:
        shares = (1.0 + jnp.clip(difference / bandwidth, -1.0, 1.0)) / 2.0
    else:
        shares = jnp.heaviside(difference, 0.5)
    return jnp.mean(jax.lax.stop_gradient(shares), axis=-1)


def _check_observation(points: Array, x: Array) -> None:
    """Asserts that `points` is [..., M] and `x` is [...]."""
    chex.assert_shape(x, points.shape[:-1])
