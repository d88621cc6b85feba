"""A run and a checkpoint of it, from its directory."""

import dataclasses
import logging
import math
from pathlib import Path

import jax

from dfpo_jax.published_files import read_json
from dfpo_jax.training.checkpoint import Checkpointer
from dfpo_jax.training.config import Config, MeshConfig, parse_config
from dfpo_jax.training.run import Run, build_run
from dfpo_jax.types import TrainState

_LOG = logging.getLogger(__name__)


def read_run(workdir: str | Path) -> Run:
    """The run of a directory, built anew from its config.json.

    Where its mesh needs more devices than there are, or leaves some out, it lies on those that
    there are, along "fsdp". None of them only samples.

    Raises:
      FileNotFoundError: no run there.
      ValueError: its configuration is damaged, or of a version with other settings.
    """
    path = Path(workdir) / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"workdir {workdir} holds no run: {path} does not exist")
    saved = read_json(path)
    try:
        config = parse_config(saved)
    except ValueError as error:
        raise ValueError(f"{path} does not fit this version: {error}") from error
    return build_run(_on_these_devices(config), training=False)


def _on_these_devices(config: Config) -> Config:
    sizes = (config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    config = dataclasses.replace(config, mesh=MeshConfig(*sizes))
    if -1 in sizes or math.prod(sizes) == jax.device_count():
        return config
    _LOG.info("mesh %s of the run becomes fsdp=%d", sizes, jax.device_count())
    return dataclasses.replace(config, mesh=MeshConfig(1, -1, 1))


def restore_state(run: Run, workdir: str | Path, step: int | None = None) -> TrainState:
    """The train state of a checkpoint of `run`; the newest intact one unless `step` is given.

    Raises:
      FileNotFoundError: no such checkpoint there, or none that is intact.
      OSError: the one that `step` names is damaged.
    """
    return Checkpointer(workdir).restore(run.learner.abstract_state, step)


def load_run(workdir: str | Path, step: int | None = None) -> tuple[Run, TrainState]:
    """The run of a directory and the train state of a checkpoint, as the two functions above.

    Raises:
      FileNotFoundError: no run or no such checkpoint there, or none that is intact.
      OSError: the one that `step` names is damaged.
    """
    run = read_run(workdir)
    return run, restore_state(run, workdir, step)
