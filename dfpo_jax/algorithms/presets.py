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
