"""The critic of another run as a value model."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from tiny_run import tiny

from dfpo_jax.training import value_model as value_models
from dfpo_jax.training.config import parse_config
from dfpo_jax.training.loop import train
from dfpo_jax.training.metrics import read_metrics
from dfpo_jax.training.restore import load_run
from dfpo_jax.training.run import build_run
from dfpo_jax.training.workdir import open_workdir


def run_in(workdir, config):
    run = build_run(parse_config(config))
    open_workdir(workdir, run)
    train(run, workdir)
    return load_run(workdir)[1]


def policy_of(source):
    config = tiny(iterations=2)
    config.algorithm = "gvm"
    config.critic.source = str(source)
    config.seed = 7
    return config


@pytest.fixture(scope="module")
def value_model(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("value_model")
    config = tiny(iterations=2)
    config.algorithm = "ppo"
    config.train.frozen = ("policy",)
    return workdir, run_in(workdir, config)


@pytest.mark.slow
def test_it_is_taken_over_with_its_units_and_never_changes(value_model, tmp_path):
    source, theirs = value_model
    state = run_in(tmp_path, policy_of(source))
    for x, y in zip(
        *map(jax.tree.leaves, (state.params["critic"], theirs.params["critic"])), strict=True
    ):
        np.testing.assert_array_equal(x, y)
    for name in ("value_shift", "value_scale"):
        assert float(state.controls[name]) == float(theirs.controls[name]) == 0.5
    rows = read_metrics(tmp_path)
    assert "rollout/explained_variance" not in rows[1]  # of a KL it would mean nothing
    assert rows[1]["policy/gradient_norm"] > 0.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.d_model": 32}, r"head/output/kernel is \(16, 1\); this run's is \(32, 1\)"),
        ({"critic.name": "quantile"}, "this run's is"),
        ({"tokenizer.alphabet": "0123456789+-*/=()x "}, "whose tokenizer is "),
        ({"critic.source": "nowhere"}, "critic.source is 'nowhere', and there is no such direct"),
    ],
)
def test_one_that_does_not_fit_is_refused_before_anything_compiles(value_model, change, message):
    config = policy_of(value_model[0])
    config.update_from_flattened_dict(change)
    with pytest.raises(ValueError, match=message) as error:
        build_run(parse_config(config))
    assert "\n" not in str(error.value)


def test_one_that_learned_in_other_units_is_refused():
    config = parse_config(policy_of("values"))
    theirs = json.loads(json.dumps(dataclasses.asdict(config)))
    value_models.check_inputs(config, theirs)
    del theirs["critic"]["units"]  # as in runs that are older than the setting
    value_models.check_inputs(config, theirs)
    theirs["critic"]["units"] = "asinh"
    with pytest.raises(ValueError, match="whose critic.units is 'asinh'; this run's is 'affine'"):
        value_models.check_inputs(config, theirs)


def test_an_empty_directory_is_no_value_model(tmp_path):
    with pytest.raises(ValueError, match="holds no checkpoint of a run"):
        build_run(parse_config(policy_of(tmp_path)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"critic.source": ""}, "returns.outcome is False and critic.source ''"),
        ({"train.frozen": ()}, "returns.outcome is False and train.frozen"),
        ({"advantage.name": "group"}, "reads rewards of whole responses alone, so it must be True"),
        ({"critic.name": "none", "advantage.name": "batch"}, "returns.outcome False needs value"),
    ],
)
def test_settings_without_an_outcome_must_have_a_critic_that_knows(change, message):
    config = policy_of("somewhere")
    config.update_from_flattened_dict(change)
    with pytest.raises(ValueError, match=message):
        parse_config(config)
