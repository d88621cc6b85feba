"""Worker processes that run cells, each on one core; the death of one loses only its cell.

This file imports no JAX: a worker pins itself to its core, on which JAX then sizes its threads.
"""

import contextlib
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple


class Job(NamedTuple):
    """What a worker does: `function` of `_study.cell`, by name, with these arguments."""

    key: Any
    function: str
    arguments: tuple


class Done(NamedTuple):
    """A job that ended: its result, or in a few words why there is none."""

    job: Job
    result: Any
    error: str = ""
    died: bool = False


class _Worker(NamedTuple):
    process: Any
    pipe: Any


def _cores() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def available() -> int:
    """Cores that this process may use."""
    return len(_cores()) or os.cpu_count() or 1


def set_up(cache: Path) -> None:
    """Environment of the workers: one thread, the CPU, and a kept compilation cache."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"


class Pool:
    """Workers that take jobs as they get free.

    Args:
      size: workers.
      logs: directory for what they print.
    """

    def __init__(self, size: int, logs: Path):
        """Start no worker yet."""
        self._logs, self._size = logs, size
        self._workers: dict[int, _Worker] = {}
        self._jobs: dict[int, Job] = {}
        logs.mkdir(parents=True, exist_ok=True)

    @property
    def free(self) -> int:
        """Workers without a job."""
        return self._size - len(self._jobs)

    @property
    def busy(self) -> bool:
        """Whether there is a job under way."""
        return bool(self._jobs)

    def start(self, job: Job) -> None:
        """Give a job to a free worker."""
        number = next(n for n in range(self._size) if n not in self._jobs)
        for _ in range(2):
            if number not in self._workers:
                self._workers[number] = self._launch(number)
            try:
                self._workers[number].pipe.send(job)
                break
            except OSError:  # it died while it had nothing to do
                self._remove(number)
        self._jobs[number] = job

    def finished(self) -> Iterator[Done]:
        """Waits until at least one job has ended."""
        pipes = {self._workers[n].pipe: n for n in self._jobs if n in self._workers}
        for number in [n for n in self._jobs if n not in self._workers]:
            yield Done(self._jobs.pop(number), None, "no worker can be started", died=True)
        for pipe in wait(list(pipes)) if pipes else ():
            number = pipes[pipe]
            job = self._jobs.pop(number)
            try:
                result, error = pipe.recv()
                yield Done(job, result, error)
            except (EOFError, OSError):
                process = self._workers[number].process
                process.join(5)
                self._remove(number)
                yield Done(job, None, f"its worker died (exit code {process.exitcode})", died=True)

    def close(self) -> None:
        """End all workers, whatever they are doing."""
        for number in list(self._workers):
            self._workers[number].process.terminate()
        for number in list(self._workers):
            self._workers[number].process.join(10)
            self._remove(number)

    def _remove(self, number: int) -> None:
        worker = self._workers.pop(number)
        with contextlib.suppress(OSError):
            worker.pipe.close()
        worker.process.kill()
        worker.process.join(5)

    def _launch(self, number: int) -> _Worker:
        cores = _cores()
        core = cores[number % len(cores)] if cores else None
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        log = self._logs / f"worker_{number}.log"
        process = context.Process(target=_serve, args=(theirs, core, log, os.getpid()))
        process.start()
        theirs.close()
        return _Worker(process, ours)


def _serve(pipe: Any, core: int | None, log: Path, parent: int) -> None:
    """The life of a worker: until its parent has no more for it, or is gone."""
    if core is not None:
        os.sched_setaffinity(0, {core})
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    file = open(log, "ab", buffering=0)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(file.fileno(), stream.fileno())
    while True:
        try:
            job = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            from _study import cell

            answer = getattr(cell, job.function)(*job.arguments), ""
        except Exception as error:
            traceback.print_exc()
            sys.stderr.flush()
            words = " ".join(str(error).split()) or "no message"
            answer = None, f"{type(error).__name__}: {words}"
        pipe.send(answer)


def _end_with(parent: int) -> None:
    """A worker must not go on after its parent: the next one would run the same cell beside it."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
