"""A run and a checkpoint of it, from its directory."""

import json
from pathlib import Path

from dfpo_jax.training.checkpoint import Checkpointer
from dfpo_jax.training.config import parse_config
from dfpo_jax.training.run import Run, build_run
from dfpo_jax.types import TrainState


def read_run(workdir: str | Path) -> Run:
    """The run of a directory, built anew from its config.json.

    Raises:
      FileNotFoundError: no run there.
    """
    path = Path(workdir) / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"workdir {workdir} holds no run: {path} does not exist")
    return build_run(parse_config(json.loads(path.read_text())))


def restore_state(run: Run, workdir: str | Path, step: int | None = None) -> TrainState:
    """The train state of a checkpoint of `run`; the newest unless `step` is given.

    Raises:
      FileNotFoundError: no such checkpoint there.
    """
    checkpoints = Checkpointer(workdir)
    state = checkpoints.restore(run.learner.abstract_state, step)
    checkpoints.close()
    return state


def load_run(workdir: str | Path, step: int | None = None) -> tuple[Run, TrainState]:
    """The run of a directory and the train state of a checkpoint, as the two functions above.

    Raises:
      FileNotFoundError: no run or no such checkpoint there.
    """
    run = read_run(workdir)
    return run, restore_state(run, workdir, step)
