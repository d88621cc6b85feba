"""Presets of published algorithms: every one parses and composes."""

import jax
import pytest
from tiny import Markov, markov_params

from dfpo_jax.algorithms import PRESETS, compose
from dfpo_jax.training.config import default_config, parse_config

PARTS = {"dfpo": ("flow", "rank"), "ppo": ("scalar", "gae"), "grpo": ("none", "group")}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_parses_and_composes(name):
    assigned = default_config()
    assigned.algorithm = name
    chosen = {"algorithm": name}
    if name == "gvm":
        with pytest.raises(ValueError, match="critic.source must name the work directory of a run"):
            parse_config(assigned)
        assigned.critic.source = "value_model"
        chosen["critic"] = {"source": "value_model"}
    config = parse_config(assigned)
    assert parse_config(chosen) == config
    for path, value in PRESETS[name].items():
        section = config
        for key in path.split("."):
            section = getattr(section, key)
        assert section == value
    algorithm = compose(Markov(), config.algorithm_config(), config.sampling.temperature)
    params = jax.eval_shape(algorithm.init, jax.random.key(0), markov_params())
    assert set(params) == set(algorithm.networks)
    # A reference needs memory for another policy.
    assert algorithm.keeps_reference == (name in ("gvm", "reinforce_pp", "flowrl"))


def test_presets_have_the_parts_of_their_papers():
    for name, parts in PARTS.items():
        config = parse_config({"algorithm": name})
        assert (config.critic.name, config.advantage.name) == parts
        assert config.objective.name == "clip"
    assert parse_config({}) == parse_config({"algorithm": "dfpo"})


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match="algorithm is 'trpo'; it must be one of dfpo, ppo, "):
        parse_config({"algorithm": "trpo"})
