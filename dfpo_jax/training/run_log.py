"""What a run writes while it lasts: metrics, responses and progress; nothing in other processes."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dfpo_jax.training import distributed
from dfpo_jax.training.json_lines import JsonLines
from dfpo_jax.training.metrics import MetricsWriter, Progress
from dfpo_jax.training.run import Run


class RunLog:
    """metrics.jsonl, samples.jsonl and the progress of a run, from one of its iterations on.

    Rows of later iterations, which a run left that was killed, are dropped. Of several processes,
    the main one alone writes.

    Args:
      run: from `build_run`.
      workdir: its directory.
      start: finished iterations, or -1 before the evaluation of the start.
    """

    def __init__(self, run: Run, workdir: Path, start: int):
        """Open the files."""
        self._writers = ()
        if not distributed.is_main():
            return
        log = run.config.log
        self._metrics = MetricsWriter(
            workdir,
            tensorboard=log.tensorboard,
            wandb_project=log.wandb_project,
            wandb_config=dataclasses.asdict(run.config),
            resume_step=start,
        )
        self._samples = JsonLines(workdir / "samples.jsonl", start)
        self._progress = Progress(run.config.train.iterations, max(start, 0))
        self._writers = (self._progress, self._samples, self._metrics)

    def write(
        self, step: int, metrics: Mapping[str, float], responses: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """Append the rows of an iteration."""
        if not self._writers:
            return
        for response in responses:
            self._samples.append({"step": step, **response})
        self._metrics.write(step, metrics)
        if step > 0:
            self._progress.update(step, metrics)

    def close(self) -> None:
        """Flush and close what was opened."""
        for writer in self._writers:
            writer.close()
