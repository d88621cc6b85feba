"""Settings of earlier versions, and where they are now."""

MOVED = {
    "critic.critic_lambda": "critic.lambda_",
    "flow": "critic.flow",
    "flow.risk_targets": "critic.flow.tail_targets",
    "group": "advantage.group",
    "head": "critic.flow.head",
    "length_penalty": "rewards.length",
    "noise.false_negative": "rewards.flip.false_negative",
    "noise.false_positive": "rewards.flip.false_positive",
    "noise.gaussian_std": "rewards.gaussian.std",
    "noise.seed": "rewards.flip.seed",
    "noise.spike_cut": "rewards.spike.cut",
    "noise.spike_df": "rewards.spike.df",
    "noise.spike_probability": "rewards.spike.probability",
    "noise.spike_scale": "rewards.spike.scale",
    "policy.advantage": "advantage.name",
    "policy.aggregation": "objective.aggregation",
    "policy.clip_high": "objective.clip.high",
    "policy.clip_low": "objective.clip.low",
    "policy.discount": "returns.discount",
    "policy.dual_clip": "objective.clip.dual",
    "policy.entropy_coefficient": "objective.entropy.coefficient",
    "policy.gae_lambda": "advantage.gae.lambda_",
    "policy.importance_cap": "objective.importance_cap",
    "policy.kl_coefficient": "objective.kl.coefficient",
    "policy.kl_horizon": "objective.kl.horizon",
    "policy.kl_in": "objective.kl.where",
    "policy.kl_kind": "objective.kl.estimator",
    "policy.kl_target": "objective.kl.target",
    "policy.length_adaptive_alpha": "advantage.gae.length_adaptive_alpha",
    "policy.logits_chunk": "log_probs.chunk",
    "policy.overlong": "returns.overlong",
    "policy.recompute_log_probs": "log_probs.recompute",
    "policy.reward_clip": "rewards.clip.bound",
    "policy.sigma_floor": "advantage.sigma.floor",
    "policy.whiten": "advantage.whiten",
    "risk": "advantage.gae.risk",
    "value_clip": "critic.scalar.value_clip",
}
"""Dotted name -> dotted name; a section stands for all settings in it that are not listed."""

ALSO = {
    "noise.seed": ("rewards.gaussian.seed", "rewards.spike.seed"),
    "policy.gae_lambda": ("advantage.sigma.lambda_", "advantage.rank.lambda_"),
    "policy.length_adaptive_alpha": (
        "advantage.sigma.length_adaptive_alpha",
        "advantage.rank.length_adaptive_alpha",
    ),
    "risk": ("advantage.sigma.risk",),
}
"""Where a setting of an earlier version is as well, for parts other than that in `MOVED`."""
