"""A value model: the critic of another run, which `critic.source` names."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from dfpo_jax.published_files import read_json
from dfpo_jax.sharding import replicated
from dfpo_jax.training.checkpoint import Checkpointer, described
from dfpo_jax.training.config import Config
from dfpo_jax.training.learner import Learner
from dfpo_jax.types import VALUE_UNITS, TrainState


def check_value_model(config: Config, learner: Learner) -> None:
    """See that the value model is there and fits; reads no weights.

    Args:
      config: of the run that takes it over.
      learner: of that run.

    Raises:
      ValueError: there is no such run, it has no checkpoint, its critic is of another kind or
        size, or it read other tokens or, with LoRA, other weights; names what differs first.
      FileNotFoundError: none of its checkpoints is intact.
    """
    source = config.critic.source
    if not source:
        return
    if not Path(source).is_dir():
        raise ValueError(f"config.critic.source is {source!r}, and there is no such directory")
    checkpoints = Checkpointer(source)
    if not checkpoints.listed():
        raise ValueError(f"config.critic.source is {source!r}, and it holds no checkpoint of a run")
    saved = checkpoints.describe(checkpoints.newest())
    wanted = described(_wanted(learner))
    theirs = {path for path in saved if path.startswith("params/critic/")}
    for path in sorted(theirs | wanted.keys()):
        shapes = [tree[path].shape if path in tree else None for tree in (saved, wanted)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"config.critic.source is {source!r}, whose {path} is "
                f"{shapes[0] or 'missing'}; this run's is {shapes[1] or 'missing'}: critic, model "
                "and LoRA must be those of that run"
            )
    check_inputs(config, read_json(Path(source) / "config.json"))


def check_inputs(config: Config, theirs: Mapping[str, Any]) -> None:
    """Raise ValueError where a value model was trained on other tokens, units or kernels.

    Args:
      config: of the run that takes it over.
      theirs: its run's configuration, as config.json holds it.
    """
    ours = json.loads(json.dumps(dataclasses.asdict(config)))
    ours, theirs = (x | {"critic.units": _critic_units(x)} for x in (ours, theirs))
    names = ["tokenizer", "critic.units"]
    if config.model.lora.rank > 0:  # its updates stand beside kernels that it does not hold
        names += ["weights"] if config.weights.source else ["seed"]
    for name in names:
        if theirs[name] != ours[name]:
            raise ValueError(
                f"config.critic.source is {config.critic.source!r}, whose {name} is "
                f"{theirs[name]!r}; this run's is {ours[name]!r}"
            )


def _critic_units(config: Mapping[str, Any]) -> str:
    return config["critic"].get("units", "affine")  # runs older than the setting had no other


def with_value_model(source: str, learner: Learner, state: TrainState) -> TrainState:
    """The state with the critic of a value model and its units of value.

    Args:
      source: a work directory, or "" for no value model.
      learner: of the run that takes it over.
      state: of that run.

    Raises:
      FileNotFoundError: none of its checkpoints is intact.
    """
    if not source:
        return state
    found = Checkpointer(source).restore_part(_wanted(learner))
    params = {**state.params, "critic": found["params"]["critic"]}
    return state.replace(params=params, controls={**state.controls, **found["controls"]})


def _wanted(learner: Learner) -> dict:
    """Shapes and places of what is taken over."""
    state, place = learner.abstract_state, replicated(learner.mesh)
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=place)
    return {
        "params": {"critic": state.params["critic"]},
        "controls": dict.fromkeys(VALUE_UNITS, number),
    }
