"""Arrays in, arrays out: no model, no configuration, no jit inside.

The public names are the imports below.
"""

# ruff: noqa: F401

from dfpo_jax.ops.advantages import (
    gae,
    group_relative,
    length_adaptive_lambda,
    min_variance,
    rloo,
)
from dfpo_jax.ops.channel import CORRECTIONS, channel_inverse, corrected_rewards
from dfpo_jax.ops.divergences import (
    KL_KINDS,
    adaptive_kl_update,
    entropy,
    kl_estimate,
)
from dfpo_jax.ops.flow_matching import (
    CFM_BASES,
    GEOMETRY_MODES,
    UNCERTAINTY_MODES,
    anchor_loss,
    distributional_cfm_loss,
    geometric_consistency_loss,
    instantaneous,
    stratified_times,
    uncertainty_weights,
)
from dfpo_jax.ops.flowrl import (
    FLOWRL_CLAMPS,
    FLOWRL_WEIGHTS,
    flowrl_clamp,
    flowrl_log_z,
    flowrl_residual,
    flowrl_weights,
)
from dfpo_jax.ops.histograms import gaussian_histogram, project_categorical
from dfpo_jax.ops.masking import (
    AGGREGATIONS,
    aggregate_weights,
    explained_variance,
    last_valid,
    lowest_share,
    masked_mean,
    masked_sum_and_count,
    masked_var,
    masked_whiten,
    place_at_last,
)
from dfpo_jax.ops.ode import SOLVERS, integrate, integrate_with_tangent, trajectory
from dfpo_jax.ops.policy_gradients import (
    cispo,
    clip_fraction,
    expert_exploration,
    ppo_clip,
    token_log_probs,
    truncated_importance_weights,
)
from dfpo_jax.ops.quantiles import (
    QUANTILE_LEVELS,
    bernoulli_quantiles,
    cdf,
    crps,
    head_consistency,
    noise_quantiles,
    quantile_at,
    quantile_huber,
    quantile_huber_by_level,
    quantile_levels,
    wasserstein1,
)
from dfpo_jax.ops.returns import final_values, normalise_rewards, successor_index
from dfpo_jax.ops.risk import (
    RISK_EMPHASES,
    RISK_MEASURES,
    TAIL_SIDES,
    cvar,
    cvar_penalty,
    mean_shift_penalty,
    risk_value,
    risk_weights,
    robust_value,
    tail_aware_weights,
    tail_curvature_penalty,
    tail_shape_penalty,
    upper_cvar,
    upper_gain_penalty,
)
from dfpo_jax.ops.sequences import (
    effective_sample_size,
    row_mean,
    row_sum,
    sequence_ratio,
    sequence_weight,
)
from dfpo_jax.ops.targets import distributional_gae, lambda_average, lambda_mixture
from dfpo_jax.ops.trust_regions import (
    DIVERGENCES,
    binary_divergence,
    divergence_mask,
    top_k_divergence,
    trust_region_mask,
)
from dfpo_jax.ops.units import (
    LARGEST_ASINH,
    asinh_units,
    from_asinh_units,
    mean_from_asinh_units,
)
