"""The directory of a run: its configuration, and the checks before a run starts or resumes."""

import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dfpo_jax.published_files import read_json
from dfpo_jax.training import distributed, failures, lock
from dfpo_jax.training.checkpoint import Checkpointer
from dfpo_jax.training.config import Config, parse_config
from dfpo_jax.training.config_diff import changed_settings
from dfpo_jax.training.run import Run
from dfpo_jax.training.run_data import FILE as DATA
from dfpo_jax.training.run_data import check_data, check_prompts, data_digests, digests

_LOG = logging.getLogger(__name__)
BEFORE = "before.json"


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically; only the main process writes."""
    if not distributed.is_main():
        return
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w") as file:
        file.write(json.dumps(value, indent=2))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def open_workdir(workdir: str | Path, run: Run, resume: bool = False) -> None:
    """Create and lock the work directory and write `config.json`; an error changes nothing.

    The directory stays locked until this process ends, see `lock`; only the main process of a run
    holds the lock. A run continues from its newest intact checkpoint.

    A resumed run logs the settings that differ from those it was started with, and keeps their file
    as config.0.json, config.1.json, ... A directory whose run ended before its first evaluation
    counts as empty.

    Args:
      workdir: the directory.
      run: from `build_run`.
      resume: whether to continue an existing run.

    Raises:
      ValueError: `workdir` is a file; another run uses it; it has a run and `resume` is False;
        `run` differs in a setting that a started run cannot change, or has a train state of another
        structure, changed data, or other held-out prompts; or the processes of this run have
        different prompts.
      FileNotFoundError: it has checkpoints, but none is intact.
    """
    workdir = Path(workdir)
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"workdir {workdir} is a file; it must be a directory or not exist")
    prompts, data = digests(run), data_digests(run)
    distributed.check_same(
        "prompts",
        prompts | data,
        "; all need the same data, and PYTHONHASHSEED=0 if a data set depends on it",
    )
    with failures.shared(code=2), contextlib.ExitStack() as on_error:
        if distributed.is_main():
            workdir.mkdir(parents=True, exist_ok=True)
            on_error.enter_context(lock.kept(workdir))
        distributed.barrier("workdir is locked")
        _begin(workdir, run, resume, prompts, data)


def _begin(
    workdir: Path, run: Run, resume: bool, prompts: Mapping[str, str], data: Mapping[str, str]
) -> None:
    """The part of `open_workdir` that needs the lock."""
    started = distributed.gather(_has_run(workdir))[0]
    if started and not resume:
        raise ValueError(
            f"workdir {workdir} already contains a run; pass --resume to continue it, or name "
            "another --workdir"
        )
    path, new, old, changed = workdir / "config.json", _plain(run.config), None, []
    if started and path.exists():
        old = _plain(_saved(path))  # adds defaults of newer settings
        changed = changed_settings(old, new)
        _check_state(workdir, run, changed)
        check_data(workdir, run.config, data)
        check_prompts(workdir / BEFORE, run.config, prompts)
    distributed.barrier("workdir is looked at")
    for line in changed:
        _LOG.warning("changed since the run was started: %s", line)
    if changed and distributed.is_main():
        count = len(list(workdir.glob("config.*.json")))
        write_json(workdir / f"config.{count}.json", old)
    write_json(path, new)
    write_json(workdir / DATA, data)


def _saved(path: Path) -> Config:
    """The configuration of a run.

    Raises:
      ValueError: it is damaged, or of a version with other settings.
    """
    saved = read_json(path)
    try:
        return parse_config(saved)
    except ValueError as error:
        raise ValueError(f"{path} does not fit this version: {error}") from error


def _has_run(workdir: Path) -> bool:
    metrics = workdir / "metrics.jsonl"
    complete = [path for path in workdir.glob("checkpoints/*") if path.name.isdigit()]
    return bool(complete) or (metrics.exists() and metrics.stat().st_size > 0)


def _plain(config: Config) -> dict[str, Any]:
    """The configuration as JSON returns it."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _check_state(workdir: Path, run: Run, changed: list[str]) -> None:
    checkpoints = Checkpointer(workdir)
    if not checkpoints.listed():
        return
    checkpoints.newest()
    if differences := checkpoints.differences(run.learner.abstract_state):
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise ValueError(
            f"workdir {workdir} cannot continue with {'; '.join(changed) or 'this version'}: "
            f"the saved train state differs in {', '.join(differences[:3])}{more}"
        )
