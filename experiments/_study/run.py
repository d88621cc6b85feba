"""Running the cells of a plan in a pool of workers."""

import functools
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from _study.grid import Cell, Study, config_hash
from _study.plan import Plan
from _study.results import append, differences
from _study.workers import Done, Job, Pool
from tqdm import tqdm

import dfpo_jax
from dfpo_jax.training.config import parse_config

_WARM, _TRIES = "warm start", 2


def run(pool: Pool, workdir: Path, results: Path, plan: Plan) -> list[str]:
    """Run all cells that are left, and append their rows; says what failed, a line each."""
    queue = _Queue(pool, workdir, plan.study)
    cells, failed = {cell.hash: cell for cell in plan.ready()}, {}
    progress = _Progress(len(cells) + len(plan.waiting()))
    try:
        for done in queue.run(list(cells.values())):
            name = done.job.key
            if done.error:
                failed[name] = done.error
                progress.say(f"failed: {_label(name, cells)}: {done.error}")
                continue
            row = make_row(cells[name], done.result)
            append(results, row)
            plan.add(row)
            progress.step(cells[name].name, done.result)
            for cell in plan.ready():  # a setting may have been chosen
                if cell.hash not in cells:
                    cells[cell.hash] = cell
                    queue.put(cell)
    finally:
        progress.close()
    lines = [f"{_label(name, cells)}: {error}" for name, error in failed.items()]
    if waiting := plan.waiting():
        lines.append(f"{len(waiting)} cells wait for cells without noise that failed")
    return lines


def check(
    pool: Pool, workdir: Path, study: Study, cells: Sequence[Cell], rows: Mapping[str, Any]
) -> list[str]:
    """Run cells again; says which rows differ, a line each."""
    lines, named = [], {cell.hash: cell for cell in cells}
    for done in _Queue(pool, workdir, study).run(list(cells)):
        name = _label(done.job.key, named)
        if done.error:
            lines.append(f"{name}: {done.error}")
            continue
        again = make_row(named[done.job.key], done.result)
        found = differences(rows[done.job.key], again)
        print(f"{name}: {'; '.join(found) or 'the same'}", file=sys.stderr, flush=True)
        lines += [f"{name}: {'; '.join(found)}"] if found else []
    return lines


def make_row(cell: Cell, result: Mapping[str, Any]) -> dict[str, Any]:
    """A row of results.jsonl."""
    versions = {"dfpo_jax": dfpo_jax.__version__, "jax": jax.__version__, "commit": commit()}
    changes = {k: v for k, v in cell.changes.items() if not k.endswith(".seed")}
    return {"cell": cell.hash, **cell.coordinates, **result, "settings": changes, **versions}


@functools.cache
def commit() -> str:
    """The commit of this program's repository, with "+" where files differ; "" outside of one."""
    where = Path(__file__).parent
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*", "--abbrev=9"]
    try:
        found = subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


class _Queue:
    """Jobs of cells, each behind its seed's warm start, where there is one.

    A job whose worker dies is tried again.
    """

    def __init__(self, pool: Pool, workdir: Path, study: Study):
        self._pool, self._workdir = pool, workdir
        self._study = study
        self._cells: list[Cell] = []
        self._tries: dict[Any, int] = {}
        self._bases: dict[int, tuple[Any, Path | None]] = {}

    def put(self, cell: Cell) -> None:
        self._cells.append(cell)

    def run(self, cells: Sequence[Cell]) -> Iterator[Done]:
        """Ends of cells and failures of warm starts, as they happen."""
        self._cells += cells
        making, broken = set(), {}
        while self._cells or self._pool.busy:
            for number in [c.seed for c in self._cells if c.seed in broken]:
                yield from self._drop(number, broken[number])
            while self._pool.free and (job := self._next(making)):
                self._pool.start(job)
            if not self._pool.busy:
                continue
            for done in self._pool.finished():
                key = done.job.key
                if done.died and self._tries.setdefault(key, 1) < _TRIES:
                    self._tries[key] += 1
                    self._pool.start(done.job)
                elif key in making:
                    making.discard(key)
                    if done.error:
                        broken[key[1]] = f"its warm start failed: {done.error}"
                else:
                    yield done

    def _drop(self, seed: int, error: str) -> Iterator[Done]:
        dropped = [cell for cell in self._cells if cell.seed == seed]
        self._cells = [cell for cell in self._cells if cell.seed != seed]
        for cell in dropped:
            yield Done(Job(cell.hash, "run_cell", ()), None, error)

    def _next(self, making: set) -> Job | None:
        """The next job, if there is one that need not wait."""
        for place, cell in enumerate(self._cells):
            key, (config, weights) = (_WARM, cell.seed), self._base(cell.seed)
            if weights is None or weights.exists():
                del self._cells[place]
                arguments = (cell.config, weights, self._workdir / "cells")
                return Job(cell.hash, "run_cell", arguments)
            if key not in making:
                making.add(key)
                return Job(key, "make_warm_start", (config, weights))
        return None

    def _base(self, seed: int) -> tuple[Any, Path | None]:
        """The base run of a seed, and the directory of its warm start, or None without one."""
        if seed not in self._bases:
            config, weights = parse_config(self._study.base(seed)), None
            if config.warm_start.steps > 0:
                name = f"{seed}_{config_hash(config)}"
                weights = (self._workdir / "warm_starts" / name).absolute()
            self._bases[seed] = config, weights
        return self._bases[seed]


def _label(key: Any, cells: Mapping[str, Cell]) -> str:
    return cells[key].name if key in cells else str(key)


class _Progress:
    """A bar on a terminal, else a line per cell, with the time left."""

    def __init__(self, total: int):
        self._total, self._done, self._clock = total, 0, time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, unit="cell", dynamic_ncols=True, smoothing=0.05)

    def step(self, name: str, result: Mapping[str, Any]) -> None:
        self._done += 1
        text = f"{name}: {result['in'][0]:.1%} -> {result['in'][1]:.1%}"
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update()
            return
        seconds = (time.monotonic() - self._clock) / self._done * (self._total - self._done)
        left = tqdm.format_interval(seconds)
        print(f"{self._done}/{self._total} {text}, {left} left", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
