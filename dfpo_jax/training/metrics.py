"""Metrics of a run: JSON lines, TensorBoard, Weights & Biases, and progress on the terminal."""

import math
import os
import resource
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from dfpo_jax.metric import Metric
from dfpo_jax.training.json_lines import JsonLines, read_rows

FILE_NAME = "metrics.jsonl"
_SHOWN = (
    ("reward", "rollout/reward", "{:.3f}"),
    ("accuracy", "rollout/accuracy", "{:.1%}"),
    ("KL", "policy/kl_old", "{:.2g}"),
)
METRICS = (
    Metric(
        "time/elapsed_seconds",
        "Seconds that the run has taken so far, with building, compilation and evaluation, over "
        "all its parts where it was resumed.",
        when="row 0 too",
    ),
)


class MetricsWriter:
    """Appends rows of metrics to `workdir/metrics.jsonl` and optionally to other services.

    A row is one JSON object on one line, `{"step": 3, "rollout/reward": 0.5}`, see `JsonLines`.
    NaN, which JSON lacks, is written as null. Keys that start with "time/" are timings; only they
    differ between two runs with the same seed.

    Args:
      workdir: directory of the run, created if it is missing.
      tensorboard: whether to write event files to `workdir/tensorboard`.
      wandb_project: "" or a project of Weights & Biases to log to. A resumed run keeps its first
        id, and does not log again the steps that were logged before.
      wandb_config: the run's settings, which Weights & Biases shows beside its curves.
      resume_step: None to append to existing rows; n to drop rows with step > n first, so that a
        run which continues from a checkpoint of step n writes no step twice (-1 drops all).

    Raises:
      ImportError: `wandb_project` is given and wandb is not installed.
      ValueError: a line other than the last of an existing metrics.jsonl is broken.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        tensorboard: bool = True,
        wandb_project: str = "",
        wandb_config: Mapping[str, Any] | None = None,
        resume_step: int | None = None,
    ):
        """Open the files; drop a broken last line and rows beyond `resume_step`."""
        self._file = self._events = self._wandb = None
        workdir = Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        self._file = JsonLines(workdir / FILE_NAME, resume_step)
        if wandb_project:
            self._wandb = _start_wandb(workdir, wandb_project, wandb_config)
        if tensorboard:
            purge = None if resume_step is None else resume_step + 1
            import tensorboardX  # imports PyTorch where there is one

            self._events = tensorboardX.SummaryWriter(
                str(workdir / "tensorboard"), purge_step=purge
            )

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one row.

        Args:
          step: iteration, >= 0.
          values: by key, real scalars (Python, NumPy or JAX), finite or NaN.

        Raises:
          ValueError: the step is below 0, a key is "step", or a value is not such a scalar; the
            message names it, and nothing is written.
          OSError: the row could not be written; any part of it is removed.
        """
        if isinstance(step, bool) or not isinstance(step, int | np.integer) or step < 0:
            raise ValueError(f"step is {step!r}; it must be an integer >= 0")
        row = {key: _scalar(key, value) for key, value in values.items()}
        line = {key: None if math.isnan(value) else value for key, value in row.items()}
        self._file.append({"step": int(step), **line})
        if self._events is not None:
            for key, value in row.items():
                if not math.isnan(value):  # tensorboardX warns about every NaN
                    self._events.add_scalar(key, value, int(step))
            self._events.flush()
        if self._wandb is not None:
            self._wandb.log(row, step=int(step))

    def close(self) -> None:
        """Flush and close; a second call does nothing."""
        if self._file is not None:
            self._file.close()
        if self._events is not None:
            self._events.close()
        if self._wandb is not None:
            self._wandb.finish()
        self._file = self._events = self._wandb = None


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, float]]:
    """The rows of `workdir/metrics.jsonl` in order, with NaN for null.

    A broken last line, which a crash may leave, is skipped.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: another line is broken; the message names it.
    """
    rows = read_rows(Path(workdir) / FILE_NAME)
    return [{k: math.nan if v is None else v for k, v in row.items()} for row in rows]


def _scalar(key: str, value: Any) -> float:
    if key == "step":
        raise ValueError('key "step" is reserved; give the value another name')
    array = np.asarray(value)
    real = jnp.issubdtype(array.dtype, jnp.integer) or jnp.issubdtype(array.dtype, jnp.floating)
    if array.ndim or not real:
        raise ValueError(f"{key} is {value!r}; it must be a real scalar")
    if math.isinf(number := float(array)):
        raise ValueError(f"{key} is {number}; it must be finite or NaN")
    return number


def _start_wandb(workdir: Path, project: str, config: Mapping[str, Any] | None):
    try:
        import wandb
    except ImportError as error:
        raise ImportError(
            f"wandb_project is {project!r} but wandb is not installed; "
            "pip install 'dfpo-jax[wandb]'"
        ) from error
    path = workdir / "wandb_id.txt"
    if not path.exists():
        path.write_text(uuid.uuid4().hex[:8])
    return wandb.init(
        project=project,
        dir=str(workdir),
        id=path.read_text().strip(),
        resume="allow",
        config=config,
    )


def explained_variance(predicted: np.ndarray, observed: np.ndarray) -> float:
    """1 - Var(observed - predicted) / Var(observed), over all entries.

    It is 1 for a predictor that is perfect up to a constant, 0 for a constant predictor, and below
    0 for a worse one.

    Args:
      predicted: any shape.
      observed: the same shape.

    Returns:
      The share, or NaN if `observed` is empty or constant.

    Raises:
      ValueError: the shapes differ.
    """
    predicted, observed = np.asarray(predicted, np.float64), np.asarray(observed, np.float64)
    if predicted.shape != observed.shape:
        raise ValueError(f"predicted is {predicted.shape}, observed {observed.shape}; must agree")
    if observed.size == 0 or np.ptp(observed) == 0.0:
        return math.nan
    return float(1.0 - np.var(observed - predicted) / np.var(observed))


def peak_memory_bytes() -> int:
    """Largest memory in use so far, in bytes.

    It is the larger of this process's peak resident set on the host and the peak of the fullest
    local device that reports one. They are not added, because on a CPU both are the same memory.
    """
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    host *= 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    return max([host] + [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s])


class Progress:
    """Shows a run's progress: a bar on a terminal, else one line about every 10 %.

    Both show the reward the learner sees, the accuracy of sampled responses, the KL to the policy
    that sampled them, and the time left.

    Args:
      total: iterations of the run.
      start: iterations done before a resume.
      stream: output; standard error by default.
    """

    def __init__(self, total: int, start: int = 0, *, stream: TextIO | None = None):
        """Start the clock, and the bar if `stream` is a terminal."""
        self._stream = sys.stderr if stream is None else stream
        self._total, self._start, self._tenth = total, start, _tenth(start, total)
        self._clock, self._bar = time.monotonic(), None
        if self._stream.isatty():
            self._bar = tqdm(
                total=total, initial=start, file=self._stream, dynamic_ncols=True, unit="it"
            )

    def update(self, done: int, values: Mapping[str, float]) -> None:
        """Show the figures after `done` iterations, without missing ones."""
        figures = {n: form.format(values[key]) for n, key, form in _SHOWN if key in values}
        if self._bar is not None:
            self._bar.set_postfix(figures, refresh=False)
            self._bar.update(done - self._bar.n)
            return
        tenth = _tenth(done, self._total)
        first = done == self._start + 1
        if tenth <= self._tenth and not first:
            return
        self._tenth = tenth
        seconds = (time.monotonic() - self._clock) * (self._total - done)
        left = tqdm.format_interval(seconds / max(done - self._start, 1))
        parts = [f"iteration {done}/{self._total}", *(f"{n} {x}" for n, x in figures.items())]
        print(", ".join([*parts, f"{left} left"]), file=self._stream, flush=True)

    def close(self) -> None:
        """Stop updating the bar; a second call does nothing."""
        if self._bar is not None:
            self._bar.close()


def _tenth(done: int, total: int) -> int:
    return 10 * done // max(total, 1)
