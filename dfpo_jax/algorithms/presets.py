"""Published methods as presets: the settings, by dotted name, that differ from the defaults."""

PRESETS = {
    # arXiv 2602.05890. The defaults are DFPO's.
    "dfpo": {},
    # arXiv 1707.06347.
    "ppo": {"critic.name": "scalar"},
    "hl_gauss": {"critic.name": "categorical"},  # arXiv 2403.03950
    # arXiv 1707.06887, with targets by the lambda-mixture.
    "c51": {
        "critic.name": "categorical",
        "critic.categorical.projection": "linear",
        "critic.categorical.num_bins": 51,
    },
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
}
"""Name -> settings. What a configuration file or a command line sets wins over them."""
