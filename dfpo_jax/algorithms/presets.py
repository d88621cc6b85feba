"""Published methods as presets: the settings, by dotted name, that differ from the defaults.

Where a source is weak, the comment says what is reconstructed.
"""

_NO_CRITIC = {"critic.name": "none", "advantage.whiten": False}
_GROUP = {**_NO_CRITIC, "advantage.name": "group"}
_UNSCALED = {**_GROUP, "advantage.group.normalize": False}
# Value Flows and FlowCritic integrate alike.
_EULER = {
    "critic.name": "flow",
    "critic.flow.num_steps": 10,
    "critic.flow.solver": "euler",
    "critic.flow.first_step": 1.0,
    "critic.flow.value_bound": 2.0,
    "critic.flow.geometry_weight": 0.0,
}
# VC-PPO, arXiv 2503.01491: values learn observed returns, and first they learn alone. How many
# iterations that may take, and when it has settled, is ours.
_PRETRAINED_VALUE = {
    "critic.name": "scalar",
    "critic.lambda_": 1.0,
    "critic.warmup": 50,
    "critic.warmup_patience": 5,
}

PRESETS = {
    # arXiv 2602.05890. Its equations are not public in full: see the README for what is measured of
    # each component. Ranks in asinh units, and their bandwidth, are ours.
    "dfpo": {
        "critic.units": "asinh",
        "critic.flow.dcfm_weight": 0.0,
        "advantage.name": "rank",
        "advantage.rank.bandwidth": 1.0,
    },
    # arXiv 1707.06347.
    "ppo": {"critic.name": "scalar"},
    # --- critics -------------------------------------------------------------------------------
    # arXiv 2403.03950, of every sample of the lambda-mixture instead of the mean: ours.
    "hl_gauss": {"critic.name": "categorical"},
    # arXiv 1707.06887, with targets by the lambda-mixture.
    "c51": {
        "critic.name": "categorical",
        "critic.categorical.projection": "linear",
        "critic.categorical.num_bins": 51,
    },
    # arXiv 1806.06923, in the form of DistRLVR, openreview 3e46ayVUgj.
    "iqn": {"critic.name": "iqn"},
    # DistRLVR, openreview 3e46ayVUgj, from its public code; of its critics the implicit quantiles.
    # Its lambda of targets is 0.9; its eight samples per target are here the critic's M; its
    # temperature of 0.5 on rewards of 0 and 1 is 1 in value units.
    "distrlvr": {
        "critic.name": "iqn",
        "critic.lambda_": 0.9,
        "advantage.name": "tail_aware",
        "advantage.tail_aware.temperature": 1.0,
    },
    # arXiv 2512.03847, of which summaries and third-party code were read. From summaries of the
    # paper: 200 quantiles, and .1 as the best weight of the "risk interval", which is taken here
    # for that of every loss of risk and tails. From the code: 3 heads, the levels, kappa and the
    # masses of the tails. The code weighs consistency by 1, but sums it over the quantiles, of
    # which the other losses are means: at large steps heads then oscillate and learn little else.
    # 1 / 200 makes it a mean too (ours).
    "dvpo": {
        "critic.name": "quantile",
        "critic.quantile.num_quantiles": 200,
        "critic.quantile.num_heads": 3,
        "critic.quantile.levels": "right",
        "critic.quantile.kappa": 1.0,
        "critic.quantile.target_mode": "average",
        "critic.quantile.tail_alpha": 0.1,
        "critic.quantile.tail_beta": 0.1,
        "critic.quantile.risk_weight": 0.1,
        "critic.quantile.cvar_weight": 0.1,
        "critic.quantile.upper_gain_weight": 0.1,
        "critic.quantile.mean_shift_weight": 0.1,
        "critic.quantile.tail_shape_weight": 0.1,
        "critic.quantile.tail_curvature_weight": 0.1,
        "critic.quantile.head_consistency_weight": 0.005,
    },
    # The baseline of arXiv 2512.03847, which describes it in a sentence: reconstructed. Heads that
    # learn from the same responses soon agree, and their minimum is then PPO's value.
    "robust_bellman": {"critic.name": "robust", "critic.robust.disjoint": True},
    # Value Flows, arXiv 2510.07650. For its two critics with averaged copies stands one critic and
    # its copy at the start of the iteration, for the one-step target the lambda-mixture, for one
    # noise per token S of them, for the range of returns a bound; sizes of the network are ours.
    # Its `dcfm_base` is "shift", which is "keep" where the discount is 1 and only last tokens are
    # rewarded, and else starts from other noise than the critic is read from.
    "value_flows": {
        **_EULER,
        "critic.flow.inference": "euler",
        "critic.flow.noise": "shared",
        "critic.flow.dcfm_weight": 1.0,
        "critic.flow.uncertainty": "emphasize",
        "critic.flow.uncertainty_temperature": 0.3,
    },
    # FlowCritic, arXiv 2510.22686, from a third-party summary: the function of its weight is
    # reconstructed, and its truncation of noise and velocities is here the bound of values.
    "flowcritic": {
        **_EULER,
        "critic.flow.inference": "ode",
        "critic.flow.target_mode": "flowcritic",
        "critic.flow.dcfm_weight": 0.0,
        "critic.flow.uncertainty": "coefficient_of_variation",
    },
    # The control of arXiv 2603.04333, after floq: a flow to one number.
    "scalar_flow": {"critic.name": "scalar_flow"},
    # arXiv 2503.01491.
    "vc_ppo": _PRETRAINED_VALUE,
    # arXiv 2504.05118, section 4; its 16 responses to a prompt are `train.samples`.
    "vapo": {
        **_PRETRAINED_VALUE,
        "advantage.gae.length_adaptive_alpha": 0.05,
        "objective.clip.high": 0.28,
        "objective.positive.weight": 0.1,
    },
    # arXiv 2510.01656, from summaries: both shares of tokens and the bonus are ours.
    "asyppo": {
        "critic.name": "ensemble",
        "critic.ensemble.disjoint": True,
        "advantage.name": "agreement",
        "objective.entropy.coefficient": 1e-3,
        "objective.entropy.leave_out": 0.2,
    },
    # DVPO with a global value model, arXiv 2502.16944, from its code: the policy is rewarded for
    # staying near its start alone, and the value model of `critic.source` knows what is good. What
    # follows a response has the value 0 there; here it has that of its last state (ours). Whether
    # the target of 0.1 nats is per token, as here, or per response is not known to us.
    "gvm": {
        "critic.name": "scalar",
        "returns.outcome": False,
        "train.frozen": ("critic",),
        "objective.kl.where": "reward",
        "objective.kl.estimator": "k1",
        "objective.kl.coefficient": 0.2,
        "objective.kl.target": 0.1,
    },
    # --- without a critic ------------------------------------------------------------------------
    # arXiv 2402.03300, section 4.1, without its KL to the reference, which `objective.kl` adds.
    "grpo": {**_GROUP, "objective.aggregation": "sequence_mean"},
    # arXiv 2503.20783, section 3.
    "dr_grpo": _UNSCALED,
    # arXiv 2402.14740: REINFORCE with a leave-one-out baseline, on the clipped ratio.
    "rloo": {**_UNSCALED, "advantage.group.baseline": "leave_one_out"},
    # arXiv 2501.03262. The coefficient is third-party documentation's, not read in the paper.
    "reinforce_pp": {
        "critic.name": "none",
        "advantage.name": "batch",
        "objective.kl.coefficient": 1e-3,
        "objective.kl.estimator": "k1",
        "objective.kl.where": "reward",
    },
    # arXiv 2503.14476. Its rewards are -1 and 1 and its penalty at most 1: half their distance,
    # which is 0.5 on the usual 0 and 1.
    "dapo": {
        **_GROUP,
        "plan.name": "refill",
        "objective.clip.high": 0.28,
        "rewards.length.share": 0.2,
        "rewards.length.scale": 0.5,
    },
    # arXiv 2510.04996, with the numbers of its code; 4 of up to 32 responses are kept.
    "reinforce_ada": {
        **_NO_CRITIC,
        "plan.name": "elimination",
        "advantage.name": "pool",
        "objective.clip.high": 0.28,
    },
    # arXiv 2507.18071, with the normalised advantage of GRPO.
    "gspo": {**_GROUP, "objective.name": "sequence", "objective.aggregation": "sequence_mean"},
    # arXiv 2506.13585, section 3.1.
    "cispo": {**_GROUP, "objective.name": "cispo"},
    # arXiv 2509.15207. Its objective reads no advantage.
    "flowrl": {**_GROUP, "objective.name": "flowrl", "objective.aggregation": "sequence_mean"},
    # arXiv 2602.04879: binary total variation, threshold .15, ratios without a cap.
    "dppo": {
        **_UNSCALED,
        "objective.name": "divergence",
        "objective.aggregation": "constant_length",
    },
    # arXiv 2602.17616, from its code. `train.behaviour_lag` makes it asynchronous.
    "vcpo": {
        **_NO_CRITIC,
        "advantage.name": "min_variance",
        "objective.name": "truncated",
        "objective.aggregation": "sequence_mean",
        "policy_optimizer.step_scaling": "sqrt",
    },
    # arXiv 2602.20197, from its code.
    "calibrl": {
        **_UNSCALED,
        "plan.name": "hybrid",
        "objective.clip.dual": 3.0,
        "objective.expert.weight": 0.1,
    },
}
"""Name -> settings. What a configuration file or a command line sets wins over them."""
