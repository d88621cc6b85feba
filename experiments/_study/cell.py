"""One cell of a study, run in this process, and the warm start that the cells of a seed share."""

import dataclasses
import gc
import hashlib
import json
import math
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from dfpo_jax import memory
from dfpo_jax.models import hf, lora, pretrained
from dfpo_jax.training.config import Config, WarmStartConfig
from dfpo_jax.training.learner import Learner
from dfpo_jax.training.loop import train
from dfpo_jax.training.metrics import read_metrics
from dfpo_jax.training.run import Run, build_run
from dfpo_jax.training.warm_start import first_policy

_LAST = 5  # training figures are means over the last fifth of a run
DIGITS = 6
# What the programs of a learner do not depend on; of the rewards they know whether one is learned.
_UNREAD = ("seed", "task", "out_of_domain", "weights", "rewards", "log", "evaluation", "checkpoint")
_kept: dict[str, Learner] = {}  # the last cell's, by what it was built from


def make_warm_start(config: Config, directory: Path) -> None:
    """Write the policy that a run starts from, as weights; all or nothing.

    Args:
      config: a run with a warm start.
      directory: must not exist.
    """
    run = build_run(config)
    policy = lora.fold(first_policy(run), run.config.model.lora)
    source = config.weights.source
    ends = pretrained.generation_config(source) if source else None  # say what ends a response
    hf.save(directory, run.config.model, policy, tokenizer=run.tokenizer, generation_config=ends)
    _forget()


def run_cell(config: Config, weights: Path | None, scratch: Path) -> dict[str, Any]:
    """Train a cell from a shared warm start, or from the weights that its run names.

    Args:
      config: of the cell, with the base run's warm start.
      weights: from `make_warm_start` of the same seed; None where the base run has no warm start.
      scratch: a directory, in which the run's own one is made and removed again.

    Returns:
      "in" and "out", the clean greedy accuracies [before, after] in and out of domain; "sampled",
      the share of right responses in training [in the first iteration, in the last fifth], by the
      clean rewards; "explained", the critic's explained variance of (noisy) training returns, mean
      over the last fifth, or None;
      "metrics", a hash of all metrics but times, which two equal runs share; "seconds", and
      "cpu_seconds", those of this process alone.
    """
    started, cpu = time.perf_counter(), time.process_time()
    if weights is not None:
        source = dataclasses.replace(config.weights, source=str(weights))
        config = dataclasses.replace(config, weights=source, warm_start=WarmStartConfig())
    workdir = Path(tempfile.mkdtemp(prefix="cell_", dir=scratch))
    try:
        results = train(_compiled(build_run(config)), workdir)
        rows = read_metrics(workdir)
    finally:
        shutil.rmtree(workdir, ignore_errors=True)
        gc.collect()
    row: dict[str, Any] = {}
    for short, name in (("in", "in_domain"), ("out", "out_of_domain")):
        if name in results:
            row[short] = [round(results[name][when], DIGITS) for when in ("before", "after")]
    first = next(row["rollout/accuracy"] for row in rows if "rollout/accuracy" in row)
    row["sampled"] = [round(first, DIGITS), _late(rows, "rollout/accuracy")]
    row["explained"] = _late(rows, "rollout/explained_variance")
    row["metrics"] = _digest(rows)
    row["seconds"] = round(time.perf_counter() - started, 1)
    return row | {"cpu_seconds": round(time.process_time() - cpu, 1)}


def _compiled(run: Run) -> Run:
    """The run with the last cell's learner, where its own would be equal, for what is compiled."""
    read = {item.name: getattr(run.config, item.name) for item in dataclasses.fields(run.config)}
    read = {name: part for name, part in read.items() if name not in _UNREAD}
    key = repr((read, run.config.rewards.learned.samples > 0))
    if key not in _kept:
        _forget()
        _kept[key] = run.learner
    return dataclasses.replace(run, learner=_kept[key])


def _late(rows: list[dict[str, float]], key: str) -> float | None:
    """The mean over the last fifth of the iterations; None where there is nothing."""
    values = [row[key] for row in rows[-max(len(rows) // _LAST, 1) :] if key in row]
    values = [value for value in values if math.isfinite(value)]
    return round(float(np.mean(values)), DIGITS) if values else None


def _digest(rows: list[dict[str, float]]) -> str:
    kept = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def _forget() -> None:
    """Programs and arrays of earlier runs leave the memory."""
    _kept.clear()
    memory.clear_caches()
    gc.collect()
