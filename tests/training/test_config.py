"""The door from `ConfigDict` to dataclasses: round trips, and errors that name the key."""

import dataclasses
import inspect
import re

import ml_collections
import pytest
from absl import flags
from ml_collections import config_flags

from dfpo_jax.algorithms import DFPOConfig, PPOConfig
from dfpo_jax.chat import ChatConfig
from dfpo_jax.models import LoraConfig, TransformerConfig
from dfpo_jax.tasks import TASKS, JsonlTask, ReasoningGymTask, Task
from dfpo_jax.training.config import (
    Config,
    EvaluationConfig,
    OptimizerConfig,
    TaskConfig,
    TrainConfig,
    WarmStartConfig,
    default_config,
    parse_config,
    to_config_dict,
)


def test_round_trip():
    assert parse_config(default_config()) == Config()
    assert parse_config({}) == Config()
    config = default_config()
    config.seed = 3
    config.algorithm = "ppo"
    config.value_clip = 0.2
    config.task.parameters = {"max_terms": 3, "nested": {"a": [1, 2]}}
    config.policy.clip_high = 0.28
    parsed = parse_config(config)
    assert parse_config(to_config_dict(parsed)) == parsed
    assert parsed != Config()
    assert parsed.task.parameters == {"max_terms": 3, "nested": {"a": [1, 2]}}
    assert type(parsed.task.parameters) is dict
    assert parsed.policy.clip_high == 0.28 and parsed.seed == 3


def test_every_setting_is_a_key():
    """No dataclass of a section hides a field from the `ConfigDict`."""

    def leaves(config, prefix=""):
        for item in dataclasses.fields(config):
            value = getattr(config, item.name)
            if dataclasses.is_dataclass(value):
                yield from leaves(value, f"{prefix}{item.name}.")
            else:
                yield f"{prefix}{item.name}", value

    config = default_config()
    found = dict(leaves(Config()))
    assert len(found) > 100
    for path, value in found.items():
        node = config
        for part in path.split("."):
            node = node[part]
        assert node == value or (value == {} and len(node) == 0)


def test_keys_left_out_keep_the_defaults_of_the_run():
    partial = parse_config({"critic_optimizer": {"clip_norm": 0.5}, "model": {"d_model": 64}})
    assert partial.critic_optimizer.learning_rate == Config().critic_optimizer.learning_rate
    assert partial.critic_optimizer.learning_rate != OptimizerConfig().learning_rate
    assert partial.model == dataclasses.replace(Config().model, d_model=64)
    assert parse_config({"sampling": {"temperature": 0.5}}).sampling.max_new_tokens == 8


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"algoritm": "ppo"}, "config.algoritm is not a setting; the nearest is config.algorithm"),
        (
            {"policy": {"gae_lamda": 0.9}},
            "config.policy.gae_lamda is not a setting; the nearest is config.policy.gae_lambda",
        ),
        (
            {"warm_start": {"optimizer": {"lr": 0.1}}},
            "config.warm_start.optimizer.lr is not a setting, and none has a name like it",
        ),
        ({"train": {"promts": 3}}, "the nearest is config.train.prompts"),
        ({"mesh": {"fsdb": 3}}, "the nearest is config.mesh.fsdp"),
        ({"zzz": 0}, "config.zzz is not a setting, and none has a name like it"),
        ({"lora": {"rank": 2}}, "config.lora is not a setting; the nearest is config.model.lora"),
        (
            {"train": {"learning_rate": 0.1}},
            "config.train.learning_rate is not a setting; the nearest are "
            "config.critic_optimizer.learning_rate, config.policy_optimizer.learning_rate, "
            "config.warm_start.optimizer.learning_rate",
        ),
        ({"task": {"temprature": 0.1}}, "the nearest is config.sampling.temperature"),
    ],
)
def test_unknown_keys_name_the_nearest(source, message):
    for kind in (dict, ml_collections.ConfigDict):
        with pytest.raises(ValueError) as error:
            parse_config(kind(source))
        assert str(error.value).endswith(message)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"seed": True}, "config.seed is True of type bool; it must be of type int"),
        ({"seed": 1.0}, "config.seed is 1.0 of type float; it must be of type int"),
        ({"policy": {"clip_low": "0.2"}}, "config.policy.clip_low is '0.2' of type str"),
        (
            {"policy": {"whiten": 1}},
            "config.policy.whiten is 1 of type int; it must be of type bool",
        ),
        ({"policy": {"discount": True}}, "config.policy.discount is True of type bool"),
        ({"policy": {"discount": None}}, "config.policy.discount is None of type NoneType"),
        ({"policy": 3}, "config.policy is 3; it must be a section"),
        ({"task": {"parameters": 3}}, "config.task.parameters is 3; it must be a section"),
        ({"algorithm": 3}, "config.algorithm is 3 of type int; it must be of type str"),
    ],
)
def test_wrong_types_are_named(source, message):
    with pytest.raises(ValueError) as error:
        parse_config(source)
    assert message in str(error.value)


@pytest.mark.parametrize("targets", [("query", "up"), ["query", "up"]])
def test_tuples_may_be_lists_as_json_has_them(targets):
    section = {"model": {"lora": {"rank": 4, "targets": targets}}}
    for kind in (dict, ml_collections.ConfigDict):
        parsed = parse_config(kind(section))
        assert parsed.model.lora == LoraConfig(4, targets=("query", "up"))
        assert parse_config(to_config_dict(parsed)) == parsed and hash(parsed.model) is not None
    with pytest.raises(ValueError, match="config.model.lora.targets is 3 of type int; it must be"):
        parse_config({"model": {"lora": {"targets": 3}}})
    with pytest.raises(ValueError, match="^config.model.lora.targets is .* some of query, key"):
        parse_config({"model": {"lora": {"targets": ["mlp"]}}})


def test_integers_stand_for_floats():
    parsed = parse_config({"policy": {"discount": 1, "clip_high": 2}})
    assert type(parsed.policy.discount) is float and parsed.policy.clip_high == 2.0


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"policy": {"gae_lambda": 1.5}}, "config.policy.gae_lambda is 1.5; it must lie in [0, 1]"),
        ({"critic": {"critic_lambda": 1.5}}, "config.critic.critic_lambda is 1.5"),
        ({"algorithm": "trpo"}, "config.algorithm is 'trpo'; it must be one of dfpo, ppo"),
        ({"task": {"name": "chess"}}, "config.task.name is 'chess'; it must be one of "),
        ({"flow": {"solver": "rk5"}}, "config.flow.solver is 'rk5'; it must be one of euler, "),
        ({"policy": {"advantage": "td"}}, "config.policy.advantage is 'td'; it must be one of gae"),
        (
            {"train": {"prompts": 3, "samples": 3, "minibatches": 2, "microbatches": 2}},
            "config.train.prompts * samples is 9; it must be a multiple of minibatches * "
            "microbatches, 4",
        ),
        (
            {"train": {"prompt_length": 2041}},
            "config.train.prompt_length + sampling.max_new_tokens is 2049; it must be at most "
            "model.max_positions, 2048",
        ),
        (
            {"algorithm": "ppo", "policy": {"advantage": "rank"}},
            "config.policy.advantage is 'rank'; PPO's scalar critic allows gae",
        ),
        ({"algorithm": "ppo", "value_clip": -1.0}, "config.value_clip is -1.0"),
        ({"value_clip": 0.2}, "config.value_clip is 0.2 and algorithm 'dfpo'; only ppo clips"),
        (
            {"policy": {"importance_cap": 2.0, "recompute_log_probs": False}},
            "config.policy.importance_cap is 2.0 and recompute_log_probs False; ",
        ),
        (
            {"algorithm": "ppo", "risk": {"measure": "cvar"}},
            "config.risk.measure is 'cvar' and algorithm 'ppo', which reads no risk measure; it",
        ),
        (
            {"algorithm": "grpo", "flow": {"tail_shape_weight": 0.1}},
            "config.flow.tail_shape_weight is 0.1 and algorithm 'grpo'; only dfpo's critic",
        ),
        (
            {"policy": {"advantage": "rank"}, "risk": {"measure": "wang"}},
            "config.risk.measure is 'wang' and advantage 'rank', which reads no risk measure",
        ),
        ({"sampling": {"temperature": 0.0}}, "config.sampling.temperature is 0.0"),
        (
            {"sampling": {"top_k": 5}, "policy": {"recompute_log_probs": False}},
            "config.policy.recompute_log_probs is False",
        ),
        ({"model": {"num_kv_heads": 3}}, "config.model.num_kv_heads is 3"),
        ({"noise": {"false_positive": 2.0}}, "config.noise.false_positive=2.0"),
        ({"risk": {"alpha": 0.0}}, "config.risk.alpha is 0.0"),
        ({"head": {"hidden": 0}}, "config.head.hidden is 0"),
        ({"policy_optimizer": {"schedule": "step"}}, "config.policy_optimizer.schedule is 'step'"),
        ({"policy_optimizer": {"b1": 1.5}}, "config.policy_optimizer.b1 is 1.5"),
        ({"policy_optimizer": {"learning_rate": -1.0}}, "learning_rate is -1.0"),
        ({"warm_start": {"steps": -1}}, "config.warm_start.steps is -1"),
        ({"warm_start": {"batch_size": 0}}, "config.warm_start.batch_size is 0"),
        ({"evaluation": {"prompts": 0}}, "config.evaluation.prompts is 0"),
        ({"checkpoint": {"keep": 0}}, "config.checkpoint.keep is 0"),
        ({"train": {"epochs": 0}}, "config.train.epochs is 0"),
    ],
)
def test_values_out_of_range_name_the_path(source, message):
    with pytest.raises(ValueError) as error:
        parse_config(source)
    assert message in str(error.value)


def test_settings_that_have_an_effect_are_allowed():
    for source in (
        {"policy": {"importance_cap": 2.0}},
        {"risk": {"measure": "cvar"}, "flow": {"cvar_weight": 0.1}},
        {"policy": {"advantage": "sigma"}, "risk": {"measure": "wang"}},
        {"policy": {"advantage": "rank"}, "flow": {"cvar_weight": 0.1}},
        {"algorithm": "ppo", "flow": {"dcfm_weight": 0.0}},  # as configs for dfpo have it
    ):
        config = dataclasses.asdict(parse_config(source))
        for section, values in source.items():
            expected = config[section] | values if isinstance(values, dict) else values
            assert config[section] == expected


def test_a_limit_that_is_just_met_is_allowed():
    assert parse_config({"train": {"prompt_length": 2040}}).train.prompt_length == 2040
    assert parse_config({"train": {"iterations": 0}}).train.iterations == 0
    TrainConfig(prompts=3, samples=4, minibatches=2, microbatches=3)
    EvaluationConfig(critic_prompts=0)
    WarmStartConfig(steps=0)


def test_algorithm_settings_come_from_their_sections():
    source = {"policy": {"clip_low": 0.1}, "critic": {"trunk": "shared"}, "head": {"hidden": 8}}
    dfpo = parse_config(source).algorithm_config()
    assert type(dfpo) is DFPOConfig
    assert (dfpo.policy.clip_low, dfpo.critic.trunk, dfpo.head.hidden) == (0.1, "shared", 8)
    ppo = parse_config({**source, "algorithm": "ppo", "value_clip": 0.3}).algorithm_config()
    assert type(ppo) is PPOConfig
    assert (ppo.policy.clip_low, ppo.critic.trunk, ppo.value_clip) == (0.1, "shared", 0.3)


def test_sections_are_frozen():
    config = parse_config({})
    for section in (config, config.policy, config.model, config.train):
        with pytest.raises(dataclasses.FrozenInstanceError):
            section.seed = 1
    assert isinstance(config.model, TransformerConfig)
    assert isinstance(hash(config.policy), int)


def test_the_task_is_built_from_its_section():
    task = TaskConfig(dataset="chain_sum", parameters={"max_terms": 2}, seed=5).build("train")
    again = TaskConfig(dataset="chain_sum", parameters={"max_terms": 2}, seed=5).build("train")
    assert task.batch(0, 4) == again.batch(0, 4)
    with pytest.raises(ValueError, match="chain_sum"):
        TaskConfig(dataset="chain_summ").build("train")


class Recorder:
    def __init__(self, **keywords):
        self.keywords = keywords


def test_a_task_is_built_with_the_keywords_its_docstring_lists(monkeypatch):
    monkeypatch.setitem(TASKS, "jsonl", Recorder)
    keywords = TaskConfig(name="jsonl", chat=ChatConfig(True), stop="x").build("train").keywords
    listed = re.search("keywords alone:(.*?)leave out", Task.__doc__, re.DOTALL)[1]
    assert len(keywords) == 10
    assert all(re.search(rf"\b{name}\b", listed) for name in keywords)
    for kind in (JsonlTask, ReasoningGymTask):
        assert set(inspect.signature(kind).parameters) == set(keywords)


def _paths(node, prefix=""):
    """Full paths of all keys, sections included."""
    for key in node.keys():
        yield prefix + key
        if isinstance(node[key], ml_collections.ConfigDict):
            yield from _paths(node[key], f"{prefix}{key}.")


def test_no_key_hides_behind_an_attribute_of_the_config_dict():
    """`config.evaluation.items` would be the method, which the command line cannot override."""
    paths = list(_paths(default_config()))
    assert len(paths) > 100 and "model.lora.rank" in paths
    assert [p for p in paths if hasattr(ml_collections.ConfigDict, p.split(".")[-1])] == []


def test_every_setting_can_be_overridden_on_the_command_line():
    config, expected = default_config(), {}
    for path in _paths(config):
        value = config
        for part in path.split("."):
            value = value[part]
        match value:
            case ml_collections.ConfigDict():
                continue
            case bool():
                expected[path] = not value
            case int() | float():
                expected[path] = value + 1
            case str():
                expected[path] = value + "other"
            case tuple():
                expected[path] = (*value, *value, 7)
    assert {"evaluation.prompts", "train.prompt_buckets", "model.lora.targets"} <= expected.keys()
    values, line = flags.FlagValues(), [f"--config.{k}={v}" for k, v in expected.items()]
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=line)
    values(["run", *line])
    for path, value in expected.items():
        found = values.config
        for part in path.split("."):
            found = getattr(found, part)
        assert found == value and type(found) is type(value), path


@pytest.mark.parametrize("buckets", [(4,), (1, 15), [3, 8]])
def test_prompt_buckets_may_be_any_lengths_below_the_longest(buckets):
    parsed = parse_config({"train": {"prompt_buckets": buckets}}).train
    assert parsed.prompt_buckets == tuple(buckets) and parsed.prompt_length == 16


@pytest.mark.parametrize(
    "buckets", [(0, 4), (-1,), (4, 4), (8, 4), (16,), (4, 20), (4.0,), (True, 4), ("4",)]
)
def test_other_prompt_buckets_are_refused(buckets):
    with pytest.raises(ValueError) as error:
        parse_config({"train": {"prompt_buckets": buckets}})
    assert str(error.value) == (
        f"config.train.prompt_buckets is {buckets}; it must hold increasing integers from 1 to "
        "prompt_length - 1, 15"
    )
