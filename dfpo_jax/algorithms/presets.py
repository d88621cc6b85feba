"""Published methods as presets: the settings, by dotted name, that differ from the defaults."""

PRESETS = {
    # arXiv 2602.05890. The defaults are DFPO's.
    "dfpo": {},
    # arXiv 1707.06347.
    "ppo": {"critic.name": "scalar"},
    "hl_gauss": {"critic.name": "categorical"},  # arXiv 2403.03950
    # Value Flows, arXiv 2510.07650. For its two critics with averaged copies stands one critic and
    # its copy at the start of the iteration, for the one-step target the lambda-mixture, for one
    # noise per token S of them, for the range of returns a bound; sizes of the network are ours.
    # Its `dcfm_base` is "shift", which is "keep" where the discount is 1 and only last tokens are
    # rewarded, and else starts from other noise than the critic is read from.
    "value_flows": {
        "critic.name": "flow",
        "critic.flow.num_steps": 10,
        "critic.flow.solver": "euler",
        "critic.flow.first_step": 1.0,
        "critic.flow.value_bound": 2.0,
        "critic.flow.inference": "euler",
        "critic.flow.noise": "shared",
        "critic.flow.dcfm_weight": 1.0,
        "critic.flow.geometry_weight": 0.0,
        "critic.flow.uncertainty": "emphasize",
        "critic.flow.uncertainty_temperature": 0.3,
    },
    # FlowCritic, arXiv 2510.22686, from a third-party summary: the function of its weight is
    # reconstructed, and its truncation of noise and velocities is here the bound of values.
    "flowcritic": {
        "critic.name": "flow",
        "critic.flow.num_steps": 10,
        "critic.flow.solver": "euler",
        "critic.flow.first_step": 1.0,
        "critic.flow.value_bound": 2.0,
        "critic.flow.inference": "ode",
        "critic.flow.target_mode": "flowcritic",
        "critic.flow.dcfm_weight": 0.0,
        "critic.flow.geometry_weight": 0.0,
        "critic.flow.uncertainty": "coefficient_of_variation",
    },
    # The control of arXiv 2603.04333, after floq: a flow to one number.
    "scalar_flow": {"critic.name": "scalar_flow"},
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
