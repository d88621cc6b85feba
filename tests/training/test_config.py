"""The door from `ConfigDict` to dataclasses: round trips, and errors that name the key."""

import dataclasses
import inspect
import json
import operator
import re

import ml_collections
import pytest
from absl import flags
from ml_collections import config_flags

from dfpo_jax.algorithms import AlgorithmConfig
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
)
from dfpo_jax.training.settings_dict import nested


def as_saved(config):
    """As config.json has it."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def test_round_trip():
    assert parse_config(default_config()) == parse_config({})
    assert parse_config({}).algorithm == Config().algorithm == "dfpo"
    config = default_config()
    config.seed = 3
    config.algorithm = "ppo"
    config.critic.scalar.value_clip = 0.2
    config.task.parameters = {"max_terms": 3, "nested": {"a": [1, 2]}}
    config.objective.clip.high = 0.28
    parsed = parse_config(config)
    assert parse_config(as_saved(parsed)) == parsed
    assert parsed != Config()
    assert parsed.task.parameters == {"max_terms": 3, "nested": {"a": [1, 2]}}
    assert type(parsed.task.parameters) is dict
    assert parsed.objective.clip.high == 0.28 and parsed.seed == 3
    assert (parsed.critic.name, parsed.critic.scalar.value_clip) == ("scalar", 0.2)


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
    found = dict(leaves(parse_config({})))
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
            {"advantage": {"gae": {"lamda_": 0.9}}},
            "config.advantage.gae.lamda_ is not a setting; the nearest is "
            "config.advantage.gae.lambda_",
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
        (
            {"task": {"temprature": 0.1}},
            "the nearest are config.sampling.temperature, config.advantage.tail_aware.temperature",
        ),
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
        (
            {"objective": {"clip": {"low": "0.2"}}},
            "config.objective.clip.low is '0.2' of type str; it must be of type float",
        ),
        (
            {"advantage": {"whiten": 1}},
            "config.advantage.whiten is 1 of type int; it must be of type bool",
        ),
        ({"returns": {"discount": True}}, "config.returns.discount is True of type bool"),
        ({"returns": {"discount": None}}, "config.returns.discount is None of type NoneType"),
        ({"objective": 3}, "config.objective is 3; it must be a section"),
        ({"critic": {"flow": 3}}, "config.critic.flow is 3; it must be a section"),
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
        assert parse_config(as_saved(parsed)) == parsed and hash(parsed.model) is not None
    with pytest.raises(ValueError, match="config.model.lora.targets is 3 of type int; it must be"):
        parse_config({"model": {"lora": {"targets": 3}}})
    with pytest.raises(ValueError, match="^config.model.lora.targets is .* some of query, key"):
        parse_config({"model": {"lora": {"targets": ["mlp"]}}})


def test_integers_stand_for_floats():
    parsed = parse_config({"returns": {"discount": 1}, "objective": {"clip": {"high": 2}}})
    assert type(parsed.returns.discount) is float and parsed.objective.clip.high == 2.0


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            {"advantage": {"gae": {"lambda_": 1.5}}},
            "config.advantage.gae.lambda_ is 1.5; it must lie in [0, 1]",
        ),
        ({"critic": {"lambda_": 1.5}}, "config.critic.lambda_ is 1.5"),
        ({"algorithm": "trpo"}, "config.algorithm is 'trpo'; it must be one of dfpo, ppo"),
        ({"task": {"name": "chess"}}, "config.task.name is 'chess'; it must be one of "),
        (
            {"critic": {"flow": {"solver": "rk5"}}},
            "config.critic.flow.solver is 'rk5'; it must be one of euler, ",
        ),
        ({"advantage": {"name": "td"}}, "config.advantage.name is 'td'; it must be one of gae"),
        (
            {"train": {"prompts": 3, "samples": 3, "minibatches": 2, "microbatches": 2}},
            "config.train.prompts * samples is 9; it must be a multiple of minibatches * "
            "microbatches, 4",
        ),
        (
            {"train": {"microbatch_tokens": 512, "microbatches": 2}},
            "config.train.microbatch_tokens is 512, which says how a minibatch is split, and "
            "microbatches 2; it must be 1",
        ),
        (
            {"train": {"prompt_length": 2041}},
            "config.train.prompt_length + sampling.max_new_tokens is 2049; it must be at most "
            "model.max_positions, 2048",
        ),
        (
            {"algorithm": "ppo", "advantage": {"name": "rank"}},
            "config.advantage 'rank' needs law; critic 'scalar' gives value, ",
        ),
        (
            {"algorithm": "ppo", "critic": {"scalar": {"value_clip": -1.0}}},
            "config.critic.scalar.value_clip is -1.0",
        ),
        (
            {"objective": {"importance_cap": 2.0}, "log_probs": {"recompute": False}},
            "config.objective.importance_cap is 2.0 and log_probs.recompute False; ",
        ),
        (
            {"algorithm": "ppo", "advantage": {"gae": {"risk": {"measure": "cvar"}}}},
            "config.advantage 'gae' needs law; critic 'scalar' gives value, ",
        ),
        ({"sampling": {"temperature": 0.0}}, "config.sampling.temperature is 0.0"),
        (
            {"sampling": {"top_k": 5}, "log_probs": {"recompute": False}},
            "config.log_probs.recompute is False",
        ),
        ({"model": {"num_kv_heads": 3}}, "config.model.num_kv_heads is 3"),
        (
            {"rewards": {"flip": {"false_positive": 2.0}}},
            "config.rewards.flip.false_positive is 2.0",
        ),
        (
            {"advantage": {"gae": {"risk": {"alpha": 0.0}}}},
            "config.advantage.gae.risk.alpha is 0.0",
        ),
        ({"critic": {"flow": {"head": {"hidden": 0}}}}, "config.critic.flow.head.hidden is 0"),
        ({"policy_optimizer": {"schedule": "step"}}, "config.policy_optimizer.schedule is 'step'"),
        ({"policy_optimizer": {"b1": 1.5}}, "config.policy_optimizer.b1 is 1.5"),
        ({"policy_optimizer": {"learning_rate": -1.0}}, "learning_rate is -1.0"),
        ({"warm_start": {"steps": -1}}, "config.warm_start.steps is -1"),
        ({"warm_start": {"batch_size": 0}}, "config.warm_start.batch_size is 0"),
        ({"evaluation": {"prompts": 0}}, "config.evaluation.prompts is 0"),
        ({"checkpoint": {"keep": 0}}, "config.checkpoint.keep is 0"),
        ({"train": {"epochs": 0}}, "config.train.epochs is 0"),
        (
            {"train": {"samples": 1}, "rewards": {"majority": {"threshold": 0.5}}},
            "config.rewards.majority.threshold is 0.5 and train.samples 1; it compares several",
        ),
        (
            {"train": {"samples": 1}, "rewards": {"rank": {"within": "group"}}},
            "config.rewards.rank.within is 'group' and train.samples 1; it compares several ",
        ),
    ],
)
def test_values_out_of_range_name_the_path(source, message):
    with pytest.raises(ValueError) as error:
        parse_config(source)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"objective.importance_cap": 2.0},
        {"advantage.gae.risk.measure": "cvar", "critic.flow.cvar_weight": 0.1},
        {"advantage.name": "sigma", "advantage.sigma.risk.measure": "wang"},
        {"advantage.name": "rank", "critic.flow.cvar_weight": 0.1},
        {"algorithm": "ppo", "critic.flow.dcfm_weight": 0.0},  # as configs for dfpo have it
        {"train.samples": 1, "rewards.rank.within": "batch"},
        {"train.samples": 2, "rewards.rank.within": "group"},
    ],
    ids=str,
)
def test_settings_that_have_an_effect_are_allowed(settings):
    parsed = parse_config(nested(settings))
    for path, value in settings.items():
        assert operator.attrgetter(path)(parsed) == value


def test_a_limit_that_is_just_met_is_allowed():
    assert parse_config({"train": {"prompt_length": 2040}}).train.prompt_length == 2040
    assert parse_config({"train": {"iterations": 0}}).train.iterations == 0
    assert TrainConfig(prompts=3, samples=4, minibatches=2, microbatches=3).prepare_pieces == 6
    assert TrainConfig(minibatches=2).prepare_pieces == 1
    EvaluationConfig(critic_prompts=0)
    WarmStartConfig(steps=0)


def test_algorithm_settings_come_from_their_sections():
    source = {
        "objective": {"clip": {"low": 0.1}},
        "critic": {"trunk": "shared", "flow": {"head": {"hidden": 8}}, "scalar": {"value_clip": 1}},
        "returns": {"discount": 0.9},
        "log_probs": {"chunk": 3},
    }
    dfpo = parse_config(source).algorithm_config()
    assert type(dfpo) is AlgorithmConfig
    assert (dfpo.objective.clip.low, dfpo.critic.trunk, dfpo.critic.name) == (0.1, "shared", "flow")
    assert (dfpo.critic.chosen.head.hidden, dfpo.returns.discount) == (8, 0.9)
    assert (dfpo.log_probs.chunk, dfpo.advantage.name) == (3, "rank")
    ppo = parse_config({**source, "algorithm": "ppo"}).algorithm_config()
    assert (ppo.objective.clip.low, ppo.critic.trunk, ppo.critic.name) == (0.1, "shared", "scalar")
    assert ppo.critic.chosen.value_clip == 1.0
    grpo = parse_config({**source, "algorithm": "grpo", "returns": {}}).algorithm_config()
    assert (grpo.critic.name, grpo.advantage.name, grpo.critic.chosen.build()) == (
        "none",
        "group",
        None,
    )


def test_sections_are_frozen():
    config = parse_config({})
    for section in (config, config.objective, config.model, config.train, config.critic.flow):
        with pytest.raises(dataclasses.FrozenInstanceError):
            section.seed = 1
    assert isinstance(config.model, TransformerConfig)
    assert isinstance(hash(config.critic.flow), int)


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
