"""Orbax checkpoints of the whole train state."""

import contextlib
import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from dfpo_jax.types import TrainState

_LOG = logging.getLogger(__name__)
_UNFINISHED = ".orbax-checkpoint-tmp"


def _to_storage(state: TrainState) -> dict:
    """A plain dict of arrays; the typed key becomes its raw data."""
    fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
    fields["key"] = jax.random.key_data(state.key)
    return fields


def _abstract_storage(abstract: TrainState) -> dict:
    """What `_to_storage` makes of a state that is only described."""
    like = {f.name: getattr(abstract, f.name) for f in dataclasses.fields(abstract)}
    data = jax.eval_shape(jax.random.key_data, abstract.key)
    like["key"] = jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=abstract.step.sharding)
    return like


def _described(tree: Any) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _shape(described: dict[str, jax.ShapeDtypeStruct], path: str) -> str:
    leaf = described.get(path)
    return "absent" if leaf is None else f"{leaf.dtype}{list(leaf.shape)}"


def unfinished(directory: Path) -> list[str]:
    """Names of checkpoints under `directory` whose writing was cut off."""
    return sorted(path.name for path in directory.glob("*") if _UNFINISHED in path.name)


class Checkpointer:
    """Saves and restores train states under `workdir/checkpoints`, one per iteration number.

    Saving is asynchronous; `close` waits for it. A checkpoint appears under its number once it is
    complete, so a process may be killed at any moment: what it was writing is passed over.

    Args:
      workdir: the run's directory.
      keep: newest checkpoints kept; the one of highest accuracy stays beside them.

    Raises:
      OSError: the directory cannot be made or read.
    """

    def __init__(self, workdir: str | Path, keep: int = 2):
        """Open or create the directory."""
        self.directory = Path(workdir).absolute() / "checkpoints"
        self.directory.mkdir(parents=True, exist_ok=True)

        def accuracy(metrics):
            return metrics["accuracy"]

        best = checkpoint_managers.BestN(
            get_metric_fn=accuracy,
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        newest = checkpoint_managers.LatestN(keep)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy([newest, best]),
            best_fn=accuracy,  # without it the figures are not written beside the arrays
        )
        self._manager = ocp.CheckpointManager(
            self.directory, item_handlers=ocp.StandardCheckpointHandler(), options=options
        )
        for name in unfinished(self.directory):
            _LOG.warning("%s is incomplete and passed over", self.directory / name)

    def steps(self) -> list[int]:
        """Iterations of the complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        """Iteration of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, accuracy: float | None = None) -> None:
        """Save under the state's own iteration number; one that is there already stays.

        Args:
          state: whole train state.
          accuracy: of the policy on held-out items, where it is known.

        Raises:
          OSError: this checkpoint, or the one before, could not be written; names those that are
            intact.
        """
        step = int(state.step)
        if step == self.latest_step():
            return
        arguments = ocp.args.StandardSave(_to_storage(state))
        metrics = None if accuracy is None else {"accuracy": accuracy}
        self._guarded(lambda: self._manager.save(step, args=arguments, metrics=metrics), step)

    def restore(self, abstract: TrainState, step: int | None = None) -> TrainState:
        """Restore a state straight to its place on the mesh, whatever mesh it was saved from.

        Args:
          abstract: shapes, types and shardings, `Learner.abstract_state`.
          step: iteration; the newest by default.

        Raises:
          FileNotFoundError: there is no such checkpoint; names the directory and those there are.
          ValueError: shapes or structure differ from `abstract`.
        """
        steps = self.steps()
        step = self.latest_step() if step is None else step
        if step is None or step not in steps:
            raise FileNotFoundError(
                f"no checkpoint of iteration {step} in {self.directory}; there are {steps}"
            )
        like = _abstract_storage(abstract)
        restored = self._manager.restore(step, args=ocp.args.StandardRestore(like))
        restored["key"] = jax.random.wrap_key_data(restored["key"])
        return TrainState(**restored)

    def differences(self, abstract: TrainState) -> list[str]:
        """Arrays of the newest checkpoint that `abstract` lacks, has besides, or has otherwise.

        Each as "path" with the shapes and types; empty where there is no checkpoint.
        """
        if self.latest_step() is None:
            return []
        saved = self.describe(self.latest_step())
        wanted = _described(_abstract_storage(abstract))
        return [
            f"{path} ({_shape(saved, path)} -> {_shape(wanted, path)})"
            for path in sorted(saved.keys() | wanted.keys())
            if _shape(saved, path) != _shape(wanted, path)
        ]

    def describe(self, step: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Path -> shape and type of every array in a checkpoint, read from its metadata."""
        tree = self._manager.item_metadata(step)
        return _described(getattr(tree, "tree", tree))

    def accuracy(self, step: int) -> float | None:
        """The accuracy a checkpoint was saved with, if it was."""
        return (self._manager.metrics(step) or {}).get("accuracy")

    def close(self) -> None:
        """Wait for saves under way.

        Raises:
          OSError: the last one could not be written.
        """
        try:
            self._guarded(self._manager.wait_until_finished, None)
        except OSError:
            with contextlib.suppress(Exception):  # it reports the same error once more
                self._manager.close()
            raise
        self._manager.close()

    def _guarded(self, action, step: int | None) -> None:
        try:
            action()
        except Exception as error:  # the storage library raises what its layers happen to raise
            which = (
                "the last checkpoint" if step is None else f"checkpoint {step} or its predecessor"
            )
            raise OSError(
                f"{which} could not be written to {self.directory}: "
                f"{(str(error) or repr(error)).splitlines()[0]}; complete: {self.steps()}"
            ) from error
