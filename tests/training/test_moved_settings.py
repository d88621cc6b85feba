"""Settings of earlier versions: one sentence that says where each is now."""

import operator

import command_lines
import pytest
from absl import flags

from dfpo_jax.training.config import Config, default_config, parse_config
from dfpo_jax.training.config_keys import setting_paths
from dfpo_jax.training.moved_settings import ALSO, MOVED

# Names by section of what the version before had and this one has not.
OLD = {
    "noise": """false_positive false_negative gaussian_std spike_probability spike_df spike_scale
        spike_cut seed""",
    "length_penalty": "buffer scale",
    "policy": """discount gae_lambda length_adaptive_alpha advantage sigma_floor whiten reward_clip
        clip_low clip_high dual_clip aggregation entropy_coefficient kl_coefficient kl_kind kl_in
        kl_target kl_horizon overlong importance_cap recompute_log_probs logits_chunk""",
    "critic": "critic_lambda",
    "flow": """num_samples num_steps solver first_step value_bound num_quantiles inference
        target_mode anchor_weight dcfm_weight dcfm_base geometry geometry_weight cvar_weight
        upper_gain_weight mean_shift_weight tail_shape_weight tail_curvature_weight risk_targets
        tail_alpha tail_beta uncertainty uncertainty_temperature""",
    "head": "hidden num_blocks condition_dim time_features",
    "risk": "measure alpha eta wang_shift",
    "group": "baseline normalize",
    "": "value_clip",
}
NAMES = [f"{section}.{name}".lstrip(".") for section in OLD for name in OLD[section].split()]
PATHS = set(setting_paths(Config()))


def where(sentence, old):
    """The setting that a sentence names, which exists."""
    start = f"config.{old} is of an earlier version; it is now config."
    assert sentence.startswith(start), sentence
    now = sentence.removeprefix(start)
    assert set(now.split(" or config.")) <= PATHS and "\n" not in sentence
    return now


@pytest.mark.parametrize("old", NAMES)
def test_an_old_name_says_where_it_is_now(old):
    nested = 0.5
    for part in reversed(old.split(".")):
        nested = {part: nested}
    with pytest.raises(ValueError) as error:
        parse_config(nested)
    now, *others = where(str(error.value), old).split(" or config.")
    for name in (now, *others):
        value = operator.attrgetter(name)(Config())
        assert isinstance(value, bool | int | float | str)  # a setting, not a section
    assert bool(others) == (old in ALSO or old.split(".")[0] in ALSO)
    section = old.split(".")[0]
    with pytest.raises(AttributeError, match=rf"config\.{section}\S* is of an earlier version; it"):
        operator.attrgetter(old)(default_config())  # in a file


def test_every_entry_is_of_an_old_name_and_leads_to_a_new_one():
    sections = {name for name in OLD if name}
    assert set(MOVED) <= {*NAMES, *sections} and not set(MOVED) & PATHS
    assert set(MOVED.values()) <= PATHS
    assert set(ALSO) <= set(MOVED) and {x for new in ALSO.values() for x in new} <= PATHS
    assert not set(NAMES) & PATHS


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("flow", "it is now config.critic.flow"),
        ("noise", "its settings are now in config.rewards"),
        (
            "policy",
            "its settings are now in config.advantage, config.log_probs, config.objective, "
            "config.returns, config.rewards",
        ),
    ],
)
def test_a_section_says_where_its_settings_are(section, said):
    with pytest.raises(AttributeError) as error:
        getattr(default_config(), section)
    assert str(error.value) == f"config.{section} is of an earlier version; {said}"


def test_an_old_name_on_the_command_line_or_in_a_file_is_one_line(tmp_path, monkeypatch):
    file = command_lines.write(tmp_path / "new.py")
    with pytest.raises(flags.Error) as error:
        command_lines.read(monkeypatch, file, "--config.policy.kl_in=reward")
    assert where(str(error.value), "policy.kl_in") == "objective.kl.where"
    file = command_lines.write(tmp_path / "old.py", "config.policy.discount = 0.9")
    with pytest.raises(flags.Error, match="old.py, line 6: .*config.policy is of an earlier vers"):
        command_lines.read(monkeypatch, file)


def test_a_value_of_the_users_own_is_no_old_setting():
    parsed = parse_config({"task": {"parameters": {"policy": 1, "noise": {"seed": 2}}}})
    assert parsed.task.parameters == {"policy": 1, "noise": {"seed": 2}}
