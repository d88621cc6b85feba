"""Published methods as presets: the settings, by dotted name, that differ from the defaults."""

PRESETS = {
    # arXiv 2602.05890. The defaults are DFPO's.
    "dfpo": {},
    # arXiv 1707.06347.
    "ppo": {"critic.name": "scalar"},
    # arXiv 2402.03300, less the KL to the reference, which needs memory for another policy.
    "grpo": {"critic.name": "none", "advantage.name": "group"},
}
"""Name -> settings. What a configuration or a command line sets wins over them."""
