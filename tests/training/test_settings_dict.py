"""Which settings a preset replaces: those that nothing assigned, in a file or a command line."""

import copy
import pickle

import command_lines
import pytest

from dfpo_jax.training.config import default_config, parse_config

PPO, GRPO = ("scalar", "gae"), ("none", "group")


def parts(config):
    """Critic and advantage, as the configuration shows them; it parses to the same."""
    shown = config.critic.name, config.advantage.name
    parsed = parse_config(config)
    assert (parsed.critic.name, parsed.advantage.name) == shown
    return shown


def test_a_preset_replaces_what_is_not_assigned_and_another_one_replaces_it():
    config = default_config()
    assert parts(config) == ("flow", "rank")
    for algorithm, expected in (("ppo", PPO), ("grpo", GRPO), ("dfpo", ("flow", "rank"))):
        config.algorithm = algorithm
        assert parts(config) == expected
        parsed = parse_config({"algorithm": algorithm})
        assert (parsed.critic.name, parsed.advantage.name) == expected


@pytest.mark.parametrize("first", [True, False], ids=["assigned first", "preset first"])
@pytest.mark.parametrize("critic", ["flow", "quantile"], ids=["the default", "another"])
def test_what_is_assigned_stays_also_where_it_is_the_default(first, critic):
    config = default_config()
    if first:
        config.critic.name = critic
    config.algorithm = "ppo"
    assert config.critic.name == (critic if first else "scalar")
    config.critic.name = critic
    assert parts(config) == (critic, "gae")
    config.algorithm = "grpo"
    assert (config.critic.name, config.advantage.name) == (critic, "group")
    parsed = parse_config({"algorithm": "ppo", "critic": {"name": critic}})
    assert parsed.critic.name == critic


def by_section(config):
    config.critic = {"name": "flow", "trunk": "detached"}


def by_update(config):
    config.critic.update(name="flow", trunk="detached")


def by_update_of_all(config):
    config.update({"critic": {"name": "flow", "trunk": "detached"}})


def by_flat_names(config):
    config.update_from_flattened_dict({"critic.name": "flow", "critic.trunk": "detached"})


def by_items(config):
    config["critic"]["name"] = "flow"
    config["critic"]["trunk"] = "detached"


@pytest.mark.parametrize(
    "assign", [by_section, by_update, by_update_of_all, by_flat_names, by_items]
)
def test_however_it_is_assigned_it_counts(assign):
    config = default_config()
    config.begin_flags()
    assign(config)
    assert config.flagged == {"critic.name", "critic.trunk"}
    config.algorithm = "ppo"
    parsed = parse_config(config).critic
    assert (parsed.name, parsed.trunk, parsed.flow.num_samples) == ("flow", "detached", 8)
    assert config.flagged == {"critic.name", "critic.trunk", "algorithm"}


def test_a_section_assigned_as_a_whole_takes_the_preset_where_it_says_nothing():
    config = default_config()
    config.critic = {"flow": {"num_steps": 2}}
    config.advantage = default_config().advantage  # all of it, so that no preset changes it
    config.algorithm = "grpo"
    parsed = parse_config({**config, "advantage": {"name": "group"}})
    assert (parsed.critic.name, parsed.critic.flow.num_steps) == ("none", 2)
    assert config.advantage.name == "rank"
    config.critic.flow.num_step = 3
    with pytest.raises(ValueError, match=r"critic\.flow\.num_step is not .*critic\.flow\.num_ste"):
        parse_config(config)


def test_nothing_is_flagged_before_a_command_line_begins_nor_by_a_preset():
    config = default_config()
    config.seed = 3
    assert config.flagged == frozenset()
    config.begin_flags()
    config.algorithm = "ppo"
    assert config.flagged == {"algorithm"} and config.critic.name == "scalar"


@pytest.mark.parametrize(
    "duplicate",
    [
        lambda config: config.copy_and_resolve_references(),
        copy.deepcopy,
        lambda config: pickle.loads(pickle.dumps(config)),
    ],
    ids=["copy_and_resolve_references", "deepcopy", "pickle"],
)
def test_a_copy_remembers_and_is_another(duplicate):
    config = default_config()
    config.advantage.name = "gae"
    made = duplicate(config)
    assert made.to_dict() == config.to_dict()
    made.critic.trunk = "shared"
    made.algorithm = "grpo"
    assert (made.critic.name, made.advantage.name) == ("none", "gae")
    assert (config.critic.name, config.critic.trunk) == ("flow", "own")
    config.algorithm = "ppo"
    assert parts(config) == PPO and made.critic.name == "none"
    made.begin_flags()
    made.seed = 1
    assert made.flagged == {"seed"} and config.flagged == frozenset()
    with pytest.raises(AttributeError, match="nearest is config.critic.flow.num_steps"):
        _ = made.critic.flow.num_step


def test_a_copied_section_may_stand_elsewhere():
    config = default_config()
    config.task.parameters = {"max_terms": 3}
    config.out_of_domain = config.task.copy_and_resolve_references()
    config.out_of_domain.parameters.max_terms = 4
    config.out_of_domain.seed = 7
    parsed = parse_config(config)
    assert parsed.task.parameters == {"max_terms": 3} and parsed.task.seed == 0
    assert parsed.out_of_domain.parameters == {"max_terms": 4} and parsed.out_of_domain.seed == 7


def test_a_command_line_chooses_the_algorithm_of_a_file_written_for_another(tmp_path, monkeypatch):
    for_dfpo = command_lines.write(
        tmp_path / "for_dfpo.py",
        "config.critic.trunk = 'detached'",
        "config.critic.flow.num_samples = 4",
        "config.critic_optimizer.learning_rate = 0.02",
    )
    for algorithm, expected in (("ppo", PPO), ("grpo", GRPO)):
        line = (for_dfpo, f"--config.algorithm={algorithm}")
        config = command_lines.read(monkeypatch, *line)
        assert parts(config) == expected
        parsed = parse_config(config)
        assert (parsed.critic.trunk, parsed.critic.flow.num_samples) == ("detached", 4)
        assert parsed.critic_optimizer.learning_rate == 0.02
    both = command_lines.read(monkeypatch, *line[:1], "--config.critic.name=flow", line[1])
    assert (both.critic.name, both.advantage.name) == ("flow", "group")
    named = command_lines.write(tmp_path / "named.py", "config.critic.name = 'flow'")
    assert parts(command_lines.read(monkeypatch, named, "--config.algorithm=ppo"))[0] == "flow"


def test_a_section_assigned_as_a_whole_keeps_the_defaults_of_what_it_leaves_out():
    config = default_config()
    config.critic = {"name": "flow", "flow": {"num_steps": 3}}
    assert (config.critic.flow.num_steps, config.critic.warmup) == (3, 0)
    config.advantage = {"whiten": True}
    config.algorithm = "grpo"  # the preset has "group" and no whitening
    assert (config.critic.name, config.advantage.name, config.advantage.whiten) == (
        "flow",
        "group",
        True,
    )
    config.advantage = {"nme": "gae"}
    with pytest.raises(ValueError, match="advantage.nme is not a setting; the nearest is"):
        parse_config(config)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"algorithm": "ppo", "critic": 5}, "config.critic is 5; it must be a section"),
        ({"algorithm": ["ppo"]}, "config.algorithm is .'ppo'. of type list"),
    ],
)
def test_a_mapping_of_another_shape_is_one_line(source, said):
    with pytest.raises(ValueError, match=said):
        parse_config(source)


def test_a_value_for_a_section_names_its_settings(tmp_path, monkeypatch):
    file = command_lines.write(tmp_path / "config.py")
    with pytest.raises(Exception, match="config.critic is a section; set one of its settings: "):
        command_lines.read(monkeypatch, file, "--config.critic=scalar")


@pytest.mark.parametrize("duplicate", [lambda x: x, copy.copy, copy.deepcopy])
def test_a_dictionary_that_is_a_setting_is_assigned_as_one(duplicate):
    config = default_config()
    for values in ({"a": 1, "b": {"c": 2}}, {}, {"d": 3}):
        config.task.parameters = values
        config = duplicate(config)
        assert parse_config(config).task.parameters == values
    config.algorithm = "ppo"
    assert parts(config) == PPO
