"""Orbax checkpoints of the whole train state."""

import contextlib
import dataclasses
import itertools
import json
import logging
import os
import re
import threading
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from dfpo_jax.training import checksums, distributed, failures
from dfpo_jax.types import TrainState

_LOG = logging.getLogger(__name__)
_UNFINISHED, _DAMAGED = ".orbax-checkpoint-tmp", ".damaged"
_warned: set[tuple[Path, str]] = set()  # warn once, although a run opens its directory twice


def _to_storage(state: TrainState) -> dict:
    """The state as a plain dict of arrays, with the raw data of the typed key."""
    fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
    fields["key"] = jax.random.key_data(state.key)
    return _without_empty(fields)


def _without_empty(fields: dict) -> dict:
    """Without what earlier versions did not have, where there is none of it, as they stored it."""
    later = ("past", "unfinished")
    return {name: x for name, x in fields.items() if name not in later or x}


def _abstract_storage(abstract: TrainState) -> dict:
    """`_to_storage` for a state of shapes and types."""
    like = {f.name: getattr(abstract, f.name) for f in dataclasses.fields(abstract)}
    data = jax.eval_shape(jax.random.key_data, abstract.key)
    like["key"] = jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=abstract.step.sharding)
    return _without_empty(like)


def described(tree: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Path -> shape and type of every array."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _shape(described: dict[str, jax.ShapeDtypeStruct], path: str) -> str:
    leaf = described.get(path)
    return "absent" if leaf is None else f"{leaf.dtype}{list(leaf.shape)}"


def left_over(directory: Path) -> list[str]:
    """One line for each entry of `directory` that is incomplete or was set aside."""
    words = {_UNFINISHED: "incomplete", _DAMAGED: "damaged, set aside"}
    names = sorted(path.name for path in directory.glob("*"))
    return [f"{n}: {text}" for n in names for part, text in words.items() if part in n]


def _warn(path: Path, words: str) -> None:
    if (path, words) not in _warned:
        _warned.add((path, words))
        _LOG.warning("checkpoint %s is %s", path, words)


class _Announcing:
    """A commit in progress; announces its failure to the other processes at once."""

    def __init__(self, commit):
        self._commit = commit

    def result(self, timeout: int | None = None) -> Any:
        with failures.shared():
            return self._commit.result(timeout)


def _handler() -> ocp.StandardCheckpointHandler:
    """Orbax's handler, changed so that a full disk is announced before it waits for others."""
    handler = ocp.StandardCheckpointHandler()
    save, finalize = handler.async_save, handler.finalize

    async def async_save(*inputs, **options):
        return [_Announcing(commit) for commit in await save(*inputs, **options) or []]

    def announcing(*inputs):
        with failures.shared():
            finalize(*inputs)

    handler.async_save, handler.finalize = async_save, announcing
    return handler


class Checkpointer:
    """Saves and restores train states under `workdir/checkpoints`, one per iteration number.

    Saving is asynchronous; `close` waits for it. A checkpoint gets its number as its name only when
    it is complete, so a process may be killed at any time: its incomplete checkpoint is ignored.
    Checksums of the files are written beside them afterwards, see `checksums`. A checkpoint is
    damaged if it lacks its mark of completeness or its files have changed. Damaged ones are skipped
    with a warning and not counted by `keep`; the first save renames them to NUMBER.damaged. Reading
    changes nothing.

    In a run of several processes, all of them must call the same methods in the same order.

    Args:
      workdir: the run's directory.
      keep: number of newest checkpoints to keep, besides the one of highest accuracy.

    Raises:
      OSError: the directory is a file.
    """

    def __init__(self, workdir: str | Path, keep: int = 2):
        """Inspect the directory; the first save creates it."""
        self.directory = Path(workdir).absolute() / "checkpoints"
        if self.directory.exists() and not self.directory.is_dir():
            raise NotADirectoryError(f"{self.directory} is not a directory")
        self._keep = keep
        self._manager: ocp.CheckpointManager | None = None
        self._faults: dict[int, str | None] = {}
        self._saved: int | None = None
        self._recorder: threading.Thread | None = None
        self._failed = threading.Event()
        for path in self.directory.glob(f"*{_UNFINISHED}*"):
            _warn(path, "incomplete and passed over")

    def faults(self) -> dict[int, str | None]:
        """Iteration -> the fault of its checkpoint, None if it is intact; ascending.

        Reads every file of every checkpoint once.
        """
        found = {step: self._fault(step) for step in self.listed()}
        # Leave out checkpoints that their run has deleted in the meantime.
        return {s: f for s, f in found.items() if os.path.lexists(self.directory / str(s))}

    def steps(self) -> list[int]:
        """Iterations of the intact checkpoints, ascending; reads as much as `faults`."""
        return [step for step, fault in self.faults().items() if fault is None]

    def latest_step(self) -> int | None:
        """Iteration of the newest intact checkpoint, or None; warns about skipped ones."""
        if self._saved is not None:
            return self._saved
        for step in reversed(self.listed()):
            if (fault := self._fault(step)) is None:
                return step
            if not os.path.lexists(self.directory / str(step)):  # its run has deleted it
                del self._faults[step]
                return self.latest_step()
            _warn(self.directory / str(step), f"damaged and passed over: {fault}")
        return None

    def newest(self) -> int:
        """Iteration of the newest intact checkpoint.

        Raises:
          FileNotFoundError: there is no intact checkpoint; gives the fault of each.
        """
        if (step := self.latest_step()) is None:
            found = "; ".join(f"{step}: {fault}" for step, fault in self.faults().items())
            raise FileNotFoundError(
                f"no intact checkpoint in {self.directory}" + (f" ({found})" if found else "")
            )
        return step

    def listed(self) -> list[int]:
        """Iterations of all checkpoints that the main process sees, judged by their names."""
        names = (path.name for path in self.directory.glob("*"))
        found = [int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name)]
        return distributed.gather(sorted(found))[0]

    def _fault(self, step: int) -> str | None:
        if step not in self._faults:
            share = jax.process_index(), jax.process_count()
            own = checksums.fault(self.directory / str(step), step, *share)
            self._faults[step] = next(filter(None, distributed.gather(own)), None)
        return self._faults[step]

    def save(self, state: TrainState, accuracy: float | None = None) -> None:
        """Save under the state's iteration number, unless that checkpoint exists.

        Args:
          state: whole train state.
          accuracy: the policy's accuracy on held-out items, if known.

        Raises:
          OSError: this checkpoint or the previous one could not be written; names the complete
            ones.
          ValueError: there is an intact checkpoint of a later iteration.
        """
        step, latest = int(state.step), self.latest_step()
        if step == latest:
            return
        if latest is not None and step < latest:
            raise ValueError(f"iteration is {step}; checkpoint {latest} is in {self.directory}")
        if self._manager is not None:
            self._guarded(self._manager.wait_until_finished, step)
        self._join()
        arguments = ocp.args.StandardSave(_to_storage(state))
        metrics = None if accuracy is None else {"accuracy": accuracy}
        self._guarded(lambda: self._writer().save(step, args=arguments, metrics=metrics), step)
        self._saved, self._faults[step] = step, None
        self._recorder = threading.Thread(target=self._record, args=(step,), daemon=True)
        self._recorder.start()

    def _writer(self) -> ocp.CheckpointManager:
        """Orbax's manager. It reads all numbered checkpoints, so damaged ones are renamed first."""
        if self._manager is not None:
            return self._manager
        for step in self.listed():
            path, damaged = self.directory / str(step), self._fault(step)
            if damaged and distributed.is_main():
                names = (f"{step}{_DAMAGED}" + (f".{n}" if n else "") for n in itertools.count())
                aside = next(x for x in map(path.with_name, names) if not os.path.lexists(x))
                path.rename(aside)
                _LOG.warning("checkpoint %s is set aside as %s: %s", path, aside.name, damaged)
        distributed.barrier("damaged checkpoints are set aside")

        def accuracy(metrics):
            return metrics["accuracy"]

        best = checkpoint_managers.BestN(
            get_metric_fn=accuracy,
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        newest = checkpoint_managers.LatestN(self._keep)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy([newest, best]),
            best_fn=accuracy,  # without it Orbax does not write the metrics
        )
        self._manager = ocp.CheckpointManager(
            self.directory, item_handlers=_handler(), options=options
        )
        return self._manager

    def _record(self, step: int) -> None:
        """Writes the checksums when the checkpoint is complete; runs in a thread."""
        directory = self.directory / str(step)
        while not directory.is_dir():
            if self._failed.wait(0.1):
                return
        try:
            checksums.record(directory, step, jax.process_index(), jax.process_count())
        except OSError as error:
            _LOG.warning("the checksums of %s could not be written: %s", directory, error)

    def _join(self) -> None:
        if self._recorder is not None:
            self._recorder.join()

    def restore(self, abstract: TrainState, step: int | None = None) -> TrainState:
        """Restore a state directly to its mesh, which may differ from the one it was saved on.

        Args:
          abstract: shapes, types and shardings, see `Learner.abstract_state`.
          step: iteration; the newest intact one by default.

        Raises:
          FileNotFoundError: there is no such checkpoint, or none is intact; names the others.
          OSError: the requested one is damaged; gives the fault.
          ValueError: shapes or structure differ from `abstract`.
        """
        step, there = self.newest() if step is None else step, self.listed()
        if step not in there:
            raise FileNotFoundError(
                f"no checkpoint of iteration {step} in {self.directory}; there are {there}"
            )
        if fault := self._fault(step):
            others = [other for other in there if other != step]
            raise OSError(
                f"checkpoint {self.directory / str(step)} is damaged: {fault}; others are {others}"
            )
        like = ocp.args.StandardRestore(_abstract_storage(abstract))
        with contextlib.closing(ocp.Checkpointer(ocp.StandardCheckpointHandler())) as reader:
            restored = reader.restore(self._item(step), args=like)
        restored["key"] = jax.random.wrap_key_data(restored["key"])
        return TrainState(**restored)

    def restore_part(self, like: dict) -> dict:
        """Some arrays of the newest intact checkpoint, as nested dicts of a state's fields.

        Args:
          like: shapes, types and shardings.

        Raises:
          FileNotFoundError: no checkpoint is intact.
        """
        arguments = ocp.args.PyTreeRestore(
            item=like,
            restore_args=ocp.checkpoint_utils.construct_restore_args(like),
            partial_restore=True,
        )
        with contextlib.closing(ocp.Checkpointer(ocp.PyTreeCheckpointHandler())) as reader:
            return reader.restore(self._item(self.newest()), args=arguments)

    def _item(self, step: int) -> Path:
        return self.directory / str(step) / "default"

    def differences(self, abstract: TrainState) -> list[str]:
        """Arrays that are missing, added or changed in `abstract`, against the newest checkpoint.

        Each is "path" with both shapes and types; empty without a checkpoint.
        """
        if self.latest_step() is None:
            return []
        saved = self.describe(self.latest_step())
        wanted = described(_abstract_storage(abstract))
        return [
            f"{path} ({_shape(saved, path)} -> {_shape(wanted, path)})"
            for path in sorted(saved.keys() | wanted.keys())
            if _shape(saved, path) != _shape(wanted, path)
        ]

    def describe(self, step: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Path -> shape and type of every array in a checkpoint, read from its metadata."""
        tree = ocp.StandardCheckpointHandler().metadata(self._item(step))
        return described(getattr(tree, "tree", tree))

    def accuracy(self, step: int) -> float | None:
        """The accuracy that a checkpoint was saved with, or None."""
        path = self.directory / str(step) / "metrics" / "metrics"
        return json.loads(path.read_bytes()).get("accuracy") if path.exists() else None

    def close(self) -> None:
        """Wait for saves in progress.

        Raises:
          OSError: the last one could not be written.
        """
        if self._manager is None:
            return
        try:
            self._guarded(self._manager.wait_until_finished, None)
        except OSError:
            with contextlib.suppress(Exception):  # it reports the same error again
                self._manager.close()
            raise
        self._join()
        self._manager.close()

    def _guarded(self, action, step: int | None) -> None:
        try:
            action()
        except Exception as error:  # the storage library may raise any type
            self._failed.set()
            which = (
                "the last checkpoint" if step is None else f"checkpoint {step} or its predecessor"
            )
            intact = (s for s, fault in self._faults.items() if fault is None)
            complete = sorted(s for s in intact if (self.directory / str(s)).is_dir())
            raise OSError(
                f"{which} could not be written to {self.directory}: "
                f"{(str(error) or repr(error)).splitlines()[0]}; complete: {complete}"
            ) from error
