"""Quantile grids, quantile regression, and scores of a distribution given as quantiles.

M quantiles belong to the levels (j - 1/2) / M, j = 1..M: the midpoints of M equal shares.
"""

import chex
import jax
import jax.numpy as jnp

from dfpo_jax.ops.checks import check, check_unit_interval
from dfpo_jax.ops.masking import as_float
from dfpo_jax.types import Array


def quantile_levels(num: int) -> Array:
    """Levels `(j - 1/2) / num`, j = 1..num.

    Args:
      num: how many, at least 1 (static).

    Returns:
      [num] increasing, in (0, 1).

    Raises:
      ValueError: if `num` is below 1.
    """
    check(num >= 1, "num", num, "at least 1")
    return (jnp.arange(num, dtype=jnp.float32) + 0.5) / num


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
      taus: [M] levels of the predictions.
      kappa: at least 0, in the units of the quantiles (static).

    Returns:
      [...] float32 or wider, in units of the quantiles (squared over kappa for small errors).

    Raises:
      ValueError: if `kappa` is negative.
      AssertionError: if shapes do not match.
    """
    chex.assert_equal_shape_prefix([quantiles, targets], quantiles.ndim - 1)
    chex.assert_equal_rank([quantiles, targets])
    chex.assert_shape(taus, (quantiles.shape[-1],))
    check(kappa >= 0, "kappa", kappa, "at least 0")
    targets = jax.lax.stop_gradient(as_float(targets))
    errors = targets[..., None, :] - as_float(quantiles)[..., :, None]
    taus = as_float(taus).reshape((1,) * (quantiles.ndim - 1) + (-1, 1))
    weights = jnp.abs(taus - (errors < 0).astype(errors.dtype))
    size = jnp.abs(errors)
    if kappa > 0:
        # The error is clamped first, so that a huge one cannot overflow the square.
        inner = jnp.minimum(size, kappa)
        size = inner * (size - 0.5 * inner) / kappa
    return jnp.mean(jax.lax.stop_gradient(weights) * size, axis=(-2, -1))


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


def cdf(quantiles: Array, x: Array) -> Array:
    """Distribution function at `x`: the share of the quantiles below it, counting ties by half.

    Args:
      quantiles: [..., M] in any order.
      x: [...] points.

    Returns:
      [...] float32 in [0, 1], without gradient.

    Raises:
      AssertionError: if shapes do not match.
    """
    _check_observation(quantiles, x)
    difference = as_float(x)[..., None] - as_float(quantiles)
    return jnp.mean(jax.lax.stop_gradient(jnp.heaviside(difference, 0.5)), axis=-1)


def _check_observation(points: Array, x: Array) -> None:
    """Asserts that `points` is [..., M] and `x` is [...]."""
    chex.assert_shape(x, points.shape[:-1])
