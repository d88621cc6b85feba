"""Losses of risk and tails on a critic's quantiles: those of DVPO (arXiv 2512.03847).

`config` is a critic's settings: it has `NAME_weight` for each of `TAILS`, `tail_alpha` and
`tail_beta`.
"""

from collections.abc import Mapping
from typing import Any

from dfpo_jax import ops
from dfpo_jax.settings import check_interval, check_unread
from dfpo_jax.types import Array, Loss

TAILS = ("cvar", "upper_gain", "mean_shift", "tail_shape", "tail_curvature")


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
