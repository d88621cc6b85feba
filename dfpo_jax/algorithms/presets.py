"""Published methods as presets: the settings, by dotted name, that differ from the defaults."""

PRESETS = {
    # arXiv 2602.05890. The defaults are DFPO's.
    "dfpo": {},
    # arXiv 1707.06347.
    "ppo": {"critic.name": "scalar"},
    "hl_gauss": {"critic.name": "categorical"},  # arXiv 2403.03950
    # arXiv 2402.03300, section 4.1, without its KL to the reference, which `objective.kl` adds.
    "grpo": {
        "critic.name": "none",
        "advantage.name": "group",
        "advantage.whiten": False,
        "objective.aggregation": "sequence_mean",
    },
    # arXiv 2503.20783, section 3.
    "dr_grpo": {
        "critic.name": "none",
        "advantage.name": "group",
        "advantage.whiten": False,
        "advantage.group.normalize": False,
    },
    # arXiv 2402.14740: REINFORCE with a leave-one-out baseline, on the clipped ratio.
    "rloo": {
        "critic.name": "none",
        "advantage.name": "group",
        "advantage.whiten": False,
        "advantage.group.baseline": "leave_one_out",
        "advantage.group.normalize": False,
    },
    # arXiv 2501.03262. The coefficient is third-party documentation's, not read in the paper.
    "reinforce_pp": {
        "critic.name": "none",
        "advantage.name": "batch",
        "objective.kl.coefficient": 1e-3,
        "objective.kl.estimator": "k1",
        "objective.kl.where": "reward",
    },
    # arXiv 2510.04996, with the numbers of its code; 4 of up to 32 responses are kept.
    "reinforce_ada": {
        "critic.name": "none",
        "plan.name": "elimination",
        "advantage.name": "pool",
        "advantage.whiten": False,
        "objective.clip.high": 0.28,
    },
    # arXiv 2503.14476. Its rewards are -1 and 1 and its penalty at most 1: half their distance,
    # which is 0.5 on the usual 0 and 1.
    "dapo": {
        "critic.name": "none",
        "plan.name": "refill",
        "advantage.name": "group",
        "advantage.whiten": False,
        "objective.clip.high": 0.28,
        "rewards.length.share": 0.2,
        "rewards.length.scale": 0.5,
    },
    # arXiv 2507.18071, with the normalised advantage of GRPO.
    "gspo": {
        "critic.name": "none",
        "advantage.name": "group",
        "advantage.whiten": False,
        "objective.name": "sequence",
        "objective.aggregation": "sequence_mean",
    },
    # arXiv 2506.13585, section 3.1.
    "cispo": {
        "critic.name": "none",
        "advantage.name": "group",
        "advantage.whiten": False,
        "objective.name": "cispo",
    },
    # arXiv 2509.15207. Its objective reads no advantage.
    "flowrl": {
        "critic.name": "none",
        "advantage.name": "group",
        "advantage.whiten": False,
        "objective.name": "flowrl",
        "objective.aggregation": "sequence_mean",
    },
    # arXiv 2602.04879: binary total variation, threshold .15, ratios without a cap.
    "dppo": {
        "critic.name": "none",
        "advantage.name": "group",
        "advantage.whiten": False,
        "advantage.group.normalize": False,
        "objective.name": "divergence",
        "objective.aggregation": "constant_length",
    },
}
"""Name -> settings. What a configuration file or a command line sets wins over them."""
