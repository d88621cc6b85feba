"""Worker processes that run cells; the death of one loses only its cell.

On the CPU each has a core. On an accelerator there is one, as a JAX process takes most of a GPU's
memory, and a TPU belongs to one process; with several GPUs there may be one for each.

This file imports no JAX: a worker first sees to its core or GPU, which JAX then finds.
"""

import contextlib
import multiprocessing
import os
import subprocess
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


class Machine(NamedTuple):
    """What cells run on.

    Attributes:
      platform: as JAX names it: "cpu", "gpu" or "tpu".
      places: cores that this process may use, or devices.
    """

    platform: str
    places: int

    def workers(self, wanted: int) -> int:
        """How many there are; 0 stands for one per core, and for one on an accelerator.

        Raises:
          ValueError: more are wanted than an accelerator can have.
        """
        if self.platform == "cpu":
            return wanted or self.places
        most = self.places if self.platform == "gpu" else 1
        if wanted > most:
            raise ValueError(
                f"--workers is {wanted}, and cells run on {self.places} {self.platform.upper()} "
                f"devices, as JAX finds; it must be at most {most} (JAX_PLATFORMS=cpu runs them on "
                "the CPU)"
            )
        return wanted or 1

    def environment(self, number: int, count: int) -> dict[str, str]:
        """What worker `number` of `count` adds to its environment: which GPU it may see."""
        if self.platform != "gpu" or count == 1:
            return {}
        return {f"JAX_{kind}_VISIBLE_DEVICES": str(number) for kind in ("CUDA", "ROCM")}


def machine() -> Machine:
    """What JAX finds here, in a process of its own: this one must leave the memory to workers.

    Raises:
      ValueError: JAX does not find what JAX_PLATFORMS names.
    """
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return Machine("cpu", _available())
    program = "import jax; print(jax.default_backend(), jax.local_device_count())"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    if found.returncode != 0:
        last = (found.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"JAX finds no device to run cells on: {last}")
    platform, devices = found.stdout.split()[-2:]
    return Machine(platform, _available() if platform == "cpu" else int(devices))


def _available() -> int:
    return len(_cores()) or os.cpu_count() or 1


def set_up(platform: str, cache: Path) -> None:
    """Environment of the workers: a kept compilation cache, and on the CPU one thread."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    if platform != "cpu":
        return
    os.environ["JAX_PLATFORMS"] = "cpu"
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"


class Pool:
    """Workers that take jobs as they get free.

    Args:
      size: workers.
      logs: directory for what they print.
      machine: what they run on.
    """

    def __init__(self, size: int, logs: Path, machine: Machine):
        """Start no worker yet."""
        self._logs, self._size, self._machine = logs, size, machine
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
        cores = _cores() if self._machine.platform == "cpu" else []
        core = cores[number % len(cores)] if cores else None
        more = self._machine.environment(number, self._size)
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        log = self._logs / f"worker_{number}.log"
        process = context.Process(target=_serve, args=(theirs, core, more, log, os.getpid()))
        process.start()
        theirs.close()
        return _Worker(process, ours)


def _serve(
    pipe: Any, core: int | None, environment: dict[str, str], log: Path, parent: int
) -> None:
    """The life of a worker: until its parent has no more for it, or is gone."""
    os.environ |= environment
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
