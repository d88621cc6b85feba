"""Orbax checkpoints of the whole train state."""

import dataclasses
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from dfpo_jax.types import TrainState


def _to_storage(state: TrainState) -> dict:
    """A plain dict of arrays; the typed key becomes its raw data."""
    fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
    fields["key"] = jax.random.key_data(state.key)
    return fields


class Checkpointer:
    """Saves and restores train states under `workdir/checkpoints`, one per iteration number.

    Saving is asynchronous; `close` waits for it. A checkpoint is visible only once complete.

    Args:
      workdir: the run's directory.
      keep: newest checkpoints kept.
    """

    def __init__(self, workdir: str | Path, keep: int = 2):
        """Open or create the directory."""
        directory = Path(workdir).absolute() / "checkpoints"
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._manager = ocp.CheckpointManager(directory, options=options)
        self.directory = directory

    def latest_step(self) -> int | None:
        """Iteration of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Save under the state's own iteration number; one that is there already stays."""
        step = int(state.step)
        if step != self.latest_step():
            self._manager.save(step, args=ocp.args.StandardSave(_to_storage(state)))

    def restore(self, abstract: TrainState, step: int | None = None) -> TrainState:
        """Restore a state straight to its place on the mesh.

        Args:
          abstract: shapes, types and shardings, `Learner.abstract_state`.
          step: iteration; the newest by default.

        Raises:
          FileNotFoundError: there is no such checkpoint; names the directory and those there are.
          ValueError: shapes or structure differ from `abstract`.
        """
        steps = sorted(self._manager.all_steps())
        step = self.latest_step() if step is None else step
        if step is None or step not in steps:
            raise FileNotFoundError(
                f"no checkpoint of iteration {step} in {self.directory}; there are {steps}"
            )
        like = {f.name: getattr(abstract, f.name) for f in dataclasses.fields(abstract)}
        data = jax.eval_shape(jax.random.key_data, abstract.key)
        like["key"] = jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=abstract.step.sharding)
        restored = self._manager.restore(step, args=ocp.args.StandardRestore(like))
        restored["key"] = jax.random.wrap_key_data(restored["key"])
        return TrainState(**restored)

    def close(self) -> None:
        """Wait for saves under way."""
        self._manager.wait_until_finished()
        self._manager.close()
