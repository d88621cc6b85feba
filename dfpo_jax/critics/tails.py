"""Losses of risk and tails on a critic's quantiles: those of DVPO (arXiv 2512.03847).

`config` is a critic's settings: it has `NAME_weight` for each of `TAILS`, `tail_alpha` and
`tail_beta`.
"""

from collections.abc import Mapping
from typing import Any

from dfpo_jax import ops
from dfpo_jax.metric import Metric
from dfpo_jax.settings import check_interval, check_unread
from dfpo_jax.types import Array, Loss

TAILS = ("cvar", "upper_gain", "mean_shift", "tail_shape", "tail_curvature")
METRICS = (
    Metric(
        "critic/cvar",
        "Squared difference of the lower tails' means, in squared units that the critic learns in.",
        formula="`(mean of the lowest tail_alpha of q - the same of q*)^2` of predicted quantiles "
        "q and target quantiles q*",
        healthy="Falling, and small beside the variance of the returns.",
        advice="Where it stays high while other losses fall, raise its weight, or the number of "
        "quantiles: a tail of `tail_alpha` has only that share of them.",
        when="with `cvar_weight` above 0",
    ),
    Metric(
        "critic/upper_gain",
        "Squared difference of the upper tails' means, in squared units that the critic learns in.",
        formula="`(mean of the highest tail_beta of q - the same of q*)^2`",
        healthy="As for `critic/cvar`.",
        advice="As for `critic/cvar`.",
        when="with `upper_gain_weight` above 0",
    ),
    Metric(
        "critic/mean_shift",
        "How far the predicted mean is below the targets', in units that the critic learns in.",
        formula="`max(mean q* - mean q, 0)`",
        healthy="Near 0. It is one-sided: a mean that is too high costs nothing.",
        advice="Where it stays high, the critic is pessimistic: read `critic/cvar` and lower the "
        "weights of the lower tail. Where the means in report.html lie above those observed, lower "
        "its own weight, which only pushes up.",
        when="with `mean_shift_weight` above 0",
    ),
    Metric(
        "critic/tail_shape",
        "How much wider the lower tail is than the targets', plus how much narrower the upper one "
        "is, in squared units that the critic learns in.",
        formula="`max(Var_low q - Var_low q*, 0) + max(Var_up q* - Var_up q, 0)`",
        healthy="Near 0. It is one-sided, so that 0 does not say that the tails agree.",
        advice="Where it stays high, raise its weight or the number of quantiles.",
        when="with `tail_shape_weight` above 0",
    ),
    Metric(
        "critic/tail_curvature",
        "How convex the quantile function is in its lower tail, plus how concave in its upper one, "
        "in units that the critic learns in. It has no target.",
        formula="`max(mean_low D, 0) + max(-mean_up D, 0)`, `D_j = q_(j+1) - 2 q_j + q_(j-1)`",
        healthy="Near 0: it is 0 for a law whose quantile function flattens towards its middle, "
        "such as a Gaussian.",
        advice="Where `eval/critic/crps` rises with its weight, the returns are not of the shape "
        "that it favours: lower the weight.",
        when="with `tail_curvature_weight` above 0",
    ),
)


def tail_weights(config: Any) -> dict[str, float]:
    """Weights of the losses of risk and tails, by name."""
    return {name: getattr(config, f"{name}_weight") for name in TAILS}


def check_tails(config: Any) -> None:
    """Raise ValueError for masses of tails outside (0, 1], and for those that no loss reads."""
    for name in ("tail_alpha", "tail_beta"):
        if getattr(config, name) <= 0.0:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be above 0")
    check_interval(config, "tail_alpha", "tail_beta", low=0.0, high=1.0)
    weights = tail_weights(config)
    if not any(weights[name] for name in ("cvar", "tail_shape", "tail_curvature")):
        check_unread(config, "tail_alpha", because="no loss of the lower tail has a weight")
    if not any(weights[name] for name in ("upper_gain", "tail_shape", "tail_curvature")):
        check_unread(config, "tail_beta", because="no loss of the upper tail has a weight")


def risk_losses(
    weights: Mapping[str, float], q: Array, goal: Array, alpha: float, beta: float
) -> dict[str, Loss]:
    """The losses that have a weight.

    Args:
      weights: by name.
      q: [B, R, M] quantiles.
      goal: [B, R, K] ascending; stopped.
      alpha, beta: mass of the lower and of the upper tail.
    """
    per_token = {
        "cvar": lambda: ops.cvar_penalty(q, goal, alpha),
        "upper_gain": lambda: ops.upper_gain_penalty(q, goal, beta),
        "mean_shift": lambda: ops.mean_shift_penalty(q, goal),
        "tail_shape": lambda: ops.tail_shape_penalty(q, goal, alpha, beta),
        "tail_curvature": lambda: ops.tail_curvature_penalty(q, alpha, beta),
    }
    return {
        name: Loss(per_token[name](), weight=weight)
        for name, weight in weights.items()
        if weight > 0.0
    }
