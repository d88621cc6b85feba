"""Arrays in, arrays out: no model, no configuration, no jit inside."""

from dfpo_jax.ops.flow_matching import (
    anchor_loss,
    distributional_cfm_loss,
    geometric_consistency_loss,
    stratified_times,
    uncertainty_weights,
)
from dfpo_jax.ops.ode import SOLVERS, integrate, integrate_with_tangent, trajectory
from dfpo_jax.ops.risk import (
    RISK_MEASURES,
    cvar,
    cvar_penalty,
    mean_shift_penalty,
    risk_value,
    tail_curvature_penalty,
    tail_shape_penalty,
    upper_cvar,
    upper_gain_penalty,
)
from dfpo_jax.ops.targets import lambda_average, lambda_mixture

__all__ = [
    # flow_matching
    "anchor_loss",
    "distributional_cfm_loss",
    "geometric_consistency_loss",
    "stratified_times",
    "uncertainty_weights",
    # ode
    "SOLVERS",
    "integrate",
    "integrate_with_tangent",
    "trajectory",
    # risk
    "RISK_MEASURES",
    "cvar",
    "cvar_penalty",
    "mean_shift_penalty",
    "risk_value",
    "tail_curvature_penalty",
    "tail_shape_penalty",
    "upper_cvar",
    "upper_gain_penalty",
    # targets
    "lambda_average",
    "lambda_mixture",
]
