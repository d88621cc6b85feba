"""Risk measures and tail penalties on quantiles.

Quantiles are [..., M], in ascending order, at the levels (j - 1/2) / M, each with mass 1/M. A tail
of mass alpha is the lowest (or highest) alpha * M of them; if that is not an integer, the last one
counts in part. Targets have no gradient. `alpha` and `beta` are static Python numbers in (0, 1].
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from dfpo_jax.ops.checks import (
    check,
    check_choice,
    check_level,
    check_positive,
    check_unit_interval,
)
from dfpo_jax.ops.masking import as_float, masked_mean

Array = chex.Array

RISK_MEASURES = ("mean", "cvar", "mean_cvar", "wang")
RISK_EMPHASES = ("lower", "upper", "mean_upper")
TAIL_SIDES = ("upper", "lower")


def _tail_mean(x: Array, level: float, *, upper: bool) -> Array:
    """Mean of the first (or last) level * M entries of the last axis; one may count in part."""
    num = x.shape[-1]
    share = np.clip(level * num - np.arange(num), 0.0, 1.0) / (level * num)
    return _weighted_mean(x, share[::-1] if upper else share)


def _weighted_mean(x: Array, weights) -> Array:
    # A sum, because matrix products lose precision on accelerators by default.
    return jnp.sum(x * jnp.broadcast_to(jnp.asarray(weights, x.dtype), x.shape), axis=-1)


def _tail_variance(x: Array, level: float, *, upper: bool) -> Array:
    """Variance within the tail (divided by its mass, not by mass - 1)."""
    centre = _tail_mean(x, level, upper=upper)[..., None]
    return _tail_mean(jnp.square(x - centre), level, upper=upper)


def cvar(quantiles: Array, alpha: float) -> Array:
    """Conditional value at risk: mean of the lowest `alpha` of the mass.

    Exact for the distribution with mass 1/M on each quantile: with k = alpha * M,
    (sum_{j <= floor(k)} q_j + (k - floor(k)) q_{floor(k) + 1}) / k. Rockafellar and Uryasev,
    Optimization of conditional value-at-risk, 2000.

    Args:
      quantiles: [..., M], in ascending order.
      alpha: mass of the tail, in (0, 1]; 1 gives the mean.

    Returns:
      [...].

    Raises:
      ValueError: `alpha` is outside (0, 1].
    """
    check_level("alpha", alpha)
    return _tail_mean(quantiles, alpha, upper=False)


def upper_cvar(quantiles: Array, beta: float) -> Array:
    """Mean of the highest `beta` of the mass: -cvar of -Z. See `cvar`.

    Raises:
      ValueError: `beta` is outside (0, 1].
    """
    check_level("beta", beta)
    return _tail_mean(quantiles, beta, upper=True)


def _check_pair(q: Array, q_target: Array) -> None:
    chex.assert_equal_shape_prefix([q, q_target], q.ndim - 1)
    chex.assert_equal_rank([q, q_target])


def cvar_penalty(q: Array, q_target: Array, alpha: float) -> Array:
    """Squared difference of the lower tail means, (cvar(q) - cvar(q_target))^2.

    After DVPO, arXiv 2512.03847; reconstruction ours, as for the other penalties below.

    Args:
      q: [..., M] quantiles, in ascending order.
      q_target: [..., K] target quantiles, e.g. sorted target samples, stopped; K may differ from M.
      alpha: mass of the tail.

    Returns:
      [...].

    Raises:
      ValueError: `alpha` is outside (0, 1].
    """
    _check_pair(q, q_target)
    return jnp.square(cvar(q, alpha) - cvar(jax.lax.stop_gradient(q_target), alpha))


def upper_gain_penalty(q: Array, q_target: Array, beta: float) -> Array:
    """Squared difference of the upper tail means. Arguments as `cvar_penalty`.

    Raises:
      ValueError: `beta` is outside (0, 1].
    """
    _check_pair(q, q_target)
    return jnp.square(upper_cvar(q, beta) - upper_cvar(jax.lax.stop_gradient(q_target), beta))


def mean_shift_penalty(q: Array, q_target: Array) -> Array:
    """How far the mean is below the target's, (mean(q_target) - mean(q))_+: [...].

    Args:
      q: [..., M] quantiles.
      q_target: [..., K] target quantiles, stopped.
    """
    _check_pair(q, q_target)
    return jax.nn.relu(jnp.mean(jax.lax.stop_gradient(q_target), axis=-1) - jnp.mean(q, axis=-1))


def tail_shape_penalty(q: Array, q_target: Array, alpha: float, beta: float) -> Array:
    """Penalises a lower tail wider, or an upper tail narrower, than the target's.

        (Var_low q - Var_low q*)_+ + (Var_up q* - Var_up q)_+

    with variances within the lowest `alpha` and the highest `beta` of the mass. The asymmetry is
    intended: it contracts the lower tail and preserves the upper one.

    Args:
      q: [..., M] quantiles, in ascending order.
      q_target: [..., K] target quantiles, in ascending order, stopped.
      alpha: mass of the lower tail.
      beta: mass of the upper tail.

    Returns:
      [...], in squared units of the return.

    Raises:
      ValueError: `alpha` or `beta` is outside (0, 1].
    """
    _check_pair(q, q_target)
    check_level("alpha", alpha)
    check_level("beta", beta)
    target = jax.lax.stop_gradient(q_target)
    low = _tail_variance(q, alpha, upper=False) - _tail_variance(target, alpha, upper=False)
    high = _tail_variance(target, beta, upper=True) - _tail_variance(q, beta, upper=True)
    return jax.nn.relu(low) + jax.nn.relu(high)


def tail_curvature_penalty(q: Array, alpha: float, beta: float) -> Array:
    """Penalises a quantile function that is convex in the lower tail or concave in the upper one.

        (mean_low D)_+ + (-mean_up D)_+,   D_j = q_{j+1} - 2 q_j + q_{j-1}

    where the tails are the first `alpha` and the last `beta` of the M - 2 second differences.

    Args:
      q: [..., M] quantiles, in ascending order, M at least 3.
      alpha: share of the second differences that form the lower tail.
      beta: share of the second differences that form the upper tail.

    Returns:
      [...].

    Raises:
      ValueError: `alpha` or `beta` is outside (0, 1], or M is below 3.
    """
    check_level("alpha", alpha)
    check_level("beta", beta)
    check(q.shape[-1] >= 3, "the number of quantiles of q", q.shape[-1], "at least 3")
    bend = q[..., 2:] - 2.0 * q[..., 1:-1] + q[..., :-2]
    low = _tail_mean(bend, alpha, upper=False)
    high = _tail_mean(bend, beta, upper=True)
    return jax.nn.relu(low) + jax.nn.relu(-high)


def tail_aware_weights(
    returns: Array,
    quantile: Array,
    mask: Array,
    *,
    temperature: float = 0.5,
    tail: float = 0.25,
    side: str = "upper",
) -> Array:
    """Weights of advantages by whether a return lies in the tail of its state's law.

        upper:  g = sigmoid((returns - quantile) / temperature) / tail
        lower:  g = sigmoid((quantile - returns) / temperature) / tail
        w = clip(g / mean(g), 1/10, 10),   the mean over valid tokens

    The division by the tail's mass cancels in the mean. Clipping comes last, so the mean of w is 1
    only where no weight is clipped. DistRLVR, openreview 3e46ayVUgj, by its public code.

    Args:
      returns: [B, T] returns G, stopped.
      quantile: [B, T] the law's quantile at level 1 - tail (upper) or tail (lower), in the units of
        the returns; stopped.
      mask: [B, T], 1 on valid tokens; what lies outside may have any value, even NaN.
      temperature: positive, width of the gate in the units of the returns (static).
      tail: mass of the tail, in (0, 1] (static).
      side: "upper" or "lower" (static).

    Returns:
      [B, T] float32 or wider in [1/10, 10], 0 outside the mask, without gradient. Where no gate is
      open as far as floats can tell, every valid weight is 1/10.

    Raises:
      ValueError: `temperature`, `tail` or `side` is not allowed.
      AssertionError: shapes differ.
    """
    check_positive("temperature", temperature)
    check_level("tail", tail)
    check_choice("side", side, TAIL_SIDES)
    chex.assert_rank(mask, 2)
    chex.assert_equal_shape([returns, quantile, mask])
    excess = as_float(returns) - as_float(quantile)
    gate = jax.nn.sigmoid((excess if side == "upper" else -excess) / temperature) / tail
    gate = gate / jnp.maximum(masked_mean(gate, mask), jnp.finfo(gate.dtype).tiny)
    weights = jnp.where(jnp.asarray(mask).astype(bool), jnp.clip(gate, 0.1, 10.0), 0.0)
    return jax.lax.stop_gradient(weights)


def risk_value(
    quantiles: Array,
    *,
    measure: str = "mean",
    alpha: float = 0.1,
    eta: float = 0.5,
    wang_shift: float = 0.75,
) -> Array:
    """Scalar value of a return distribution under a distortion of its quantiles.

        "mean":      mean of the quantiles
        "cvar":      CVaR_alpha
        "mean_cvar": (1 - eta) mean + eta CVaR_alpha
        "wang":      sum_j (g(j/M) - g((j-1)/M)) q_j,  g(u) = Phi(Phi^{-1}(u) + wang_shift)

    A positive `wang_shift` is averse to risk, a negative one seeks it; on N(m, s^2) the value is
    m - wang_shift * s. Wang, A class of distortion operators for pricing financial and insurance
    risks, 2000.

    Args:
      quantiles: [..., M], in ascending order.
      measure: one of `RISK_MEASURES`.
      alpha: mass of the tail of "cvar" and "mean_cvar".
      eta: weight of the tail in "mean_cvar", in [0, 1].
      wang_shift: shift of "wang".

    Returns:
      [...].

    Raises:
      ValueError: `measure`, `alpha` or `eta` is not allowed.
    """
    check_choice("measure", measure, RISK_MEASURES)
    check_level("alpha", alpha)
    check_unit_interval("eta", eta)
    if measure == "cvar":
        return cvar(quantiles, alpha)
    if measure == "wang":
        edges = jnp.linspace(0.0, 1.0, quantiles.shape[-1] + 1, dtype=quantiles.dtype)
        cumulative = jax.scipy.special.ndtr(jax.scipy.special.ndtri(edges) + wang_shift)
        return _weighted_mean(quantiles, jnp.diff(cumulative))
    mean = jnp.mean(quantiles, axis=-1)
    if measure == "mean":
        return mean
    return (1.0 - eta) * mean + eta * cvar(quantiles, alpha)


def robust_value(quantiles: Array, *, radius: float, lowest: float) -> Array:
    """The least mean over all laws within a total-variation distance of `radius`.

        V = radius * lowest + (1/M) * (sum of the lowest (1 - radius) M values)

    whose last term counts in part. The worst law takes the mass `radius` from the top and puts it
    on the lowest value there is. With `lowest` 0 this is (1 - radius) times the mean of the lowest
    1 - radius of the mass, at which the dual of RFQI (Panaganti et al. 2022, arXiv 2208.05129) is
    maximal. That paper learns the dual variable; the closed form is ours.

    Args:
      quantiles: [..., M] ascending: quantiles, samples, or values of an ensemble.
      radius: in [0, 1] (static); 0 gives the mean, 1 gives `lowest`.
      lowest: the smallest value there can be, at most the smallest of the quantiles.

    Returns:
      [...].

    Raises:
      ValueError: `radius` is outside [0, 1].
    """
    check_unit_interval("radius", radius)
    num = quantiles.shape[-1]
    kept = np.clip((1.0 - radius) * num - np.arange(num), 0.0, 1.0) / num
    return radius * lowest + _weighted_mean(quantiles, kept)


def risk_weights(levels: Array, *, emphasis: str = "lower", rate: float = 1.0) -> Array:
    """Weights omega_j of the quantiles at `levels` in a risk-weighted quantile loss (DVPO, eq. 4).

        "lower":      exp(-rate * tau_j), which emphasises the lower tail
        "upper":      exp(-rate * (1 - tau_j)), which emphasises the upper one
        "mean_upper": the mean of "upper" for every j, which changes the size of the loss alone

    "mean_upper" is what third-party code of DVPO (arXiv 2512.03847) computes: it averages the
    quantile loss before it multiplies. Its comment announces an emphasis of the lower tail. The
    paper's own form was not found.

    Args:
      levels: [M] tau_j in [0, 1].
      emphasis: one of `RISK_EMPHASES`.
      rate: how fast the weights fall, above 0.

    Returns:
      [M], without gradient.

    Raises:
      ValueError: `emphasis` or `rate` is not allowed.
    """
    check_choice("emphasis", emphasis, RISK_EMPHASES)
    check_positive("rate", rate)
    levels = jax.lax.stop_gradient(levels)
    weights = jnp.exp(-rate * (levels if emphasis == "lower" else 1.0 - levels))
    return jnp.full_like(weights, jnp.mean(weights)) if emphasis == "mean_upper" else weights
