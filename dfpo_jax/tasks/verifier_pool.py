"""Verifiers in child processes that are killed when they take too long."""

import collections
import concurrent.futures
import functools
import json
import os
import pathlib
import pickle
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any

_WORKER = pathlib.Path(__file__).with_name("verifier_worker.py")
_START_SECONDS = 120.0  # long enough for imports on a busy machine
_CHUNK = 16  # most requests sent to a process at a time


class _Child:
    """One process, not running before the first request and after a failure."""

    def __init__(self, name: str, memory: int):
        self._name, self._memory, self._process = name, memory, None

    def start(self, settings: bytes) -> None:
        """Start the process and load the verifier, unless that is done already.

        Raises:
          ValueError: the process cannot be started, or the verifier cannot be loaded.
        """
        if self._process is None or self._process.poll() is not None:
            self.kill()  # cleans up after a process that has ended
            try:
                self._spawn()
            except OSError as error:
                raise ValueError(f"verifier {self._name!r} cannot be started: {error}") from error
        if settings in self._loaded:
            return
        self._send(0.0, settings, [])
        status, value = self._receive(_START_SECONDS)
        if status != "ready":
            self.kill()
            raise ValueError(f"verifier {self._name!r} cannot be loaded: {value}")
        self._loaded.add(settings)

    def _spawn(self) -> None:
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        # One thread each: the processes run in parallel, and stacks count as address space.
        environment = {"OPENBLAS_NUM_THREADS": "1"} | os.environ | {"PYTHONPATH": path}
        self._process = subprocess.Popen(
            # -P: the script's directory has modules with the names of packages.
            [sys.executable, "-P", str(_WORKER), self._name, str(self._memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        self._poll = select.poll()  # select.select takes no file descriptor above 1023
        self._poll.register(self._process.stdout, select.POLLIN)
        self._received, self._loaded = b"", set()

    def ask(self, requests: Sequence[bytes], seconds: float, settings: bytes) -> list[tuple]:
        """Answers up to the first request that ends the process, which must be running."""
        self._send(seconds, settings, requests)
        answers = []
        for _ in requests:
            status, value = self._receive(seconds)
            answers.append(("error" if status == "died" else status, value))
            if status in ("timeout", "died"):
                self.kill()
                break
        return answers

    def _send(self, *message: Any) -> None:
        try:
            pickle.dump(message, self._process.stdin)
            self._process.stdin.flush()
        except OSError:
            pass  # the process has ended; `_receive` reports it

    def _receive(self, seconds: float) -> tuple[str, Any]:
        """The next message; reads until it is complete or time is up."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self._received:
            if not self._poll.poll(1000.0 * max(deadline - time.monotonic(), 0.0)):
                return "timeout", f"no verdict within {seconds} s"
            part = os.read(self._process.stdout.fileno(), 65536)
            if not part:
                return "died", f"its process ended with code {self.kill()}"
            self._received += part
        line, _, self._received = self._received.partition(b"\n")
        status, value = json.loads(line)
        return status, value

    def kill(self) -> int | None:
        """Kill the process and those it started; returns its exit code."""
        process, self._process = self._process, None
        if process is None:
            return None
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # they have all ended
        process.stdout.close()
        try:
            process.stdin.close()
        except OSError:  # some data was not sent
            pass
        return process.wait()


class Pool:
    """Processes that each run the same verifier.

    Args:
      name: "math_verify", "reasoning_gym" or "module:function".
      workers: number of processes, >= 1.
      memory: bytes of address space that a process may use, 0 for no limit.
    """

    def __init__(self, name: str, workers: int, memory: int = 0):
        """Starts no process."""
        self._children = [_Child(name, memory) for _ in range(workers)]
        self._threads = concurrent.futures.ThreadPoolExecutor(workers)
        self._lock = threading.Lock()
        weakref.finalize(self, _kill_all, self._children)  # also runs at exit

    def check(self, settings: bytes = b"") -> None:
        """Start one process.

        Args:
          settings: the data set of "reasoning_gym": its pickled name and parameters.

        Raises:
          ValueError: the process cannot be started, or the verifier cannot be loaded.
        """
        with self._lock:
            self._children[0].start(settings)

    def run(
        self, requests: Sequence[tuple], seconds: float, settings: bytes = b""
    ) -> list[tuple[str, Any]]:
        """("ok", reward), ("error", message) or ("timeout", message) for each request.

        If a process cannot be started, the others take its requests. A request that no process
        takes is an error. The next call tries again.

        Args:
          requests: (response, answer, payload) each; the payload must be picklable.
          seconds: wall time for each request.
          settings: as for `check`.
        """
        pickled = [pickle.dumps(request) for request in requests]
        # Chunks are small, so that every process has work until the end.
        size = min(max(len(pickled) // (4 * len(self._children)), 1), _CHUNK)
        rows = range(len(pickled))
        chunks = collections.deque(rows[first : first + size] for first in rows[::size])
        results: list[tuple[str, Any] | None] = [None] * len(pickled)

        def serve(child: _Child) -> str:
            """Answer chunks until none is left; returns the error if the process cannot start."""
            while chunks:
                try:
                    child.start(settings)
                    chunk = chunks.popleft()
                except ValueError as error:
                    return str(error)
                except IndexError:  # another process took the last chunk
                    break
                answers = child.ask([pickled[row] for row in chunk], seconds, settings)
                for row, answer in zip(chunk, answers, strict=False):
                    results[row] = answer
                if len(answers) < len(chunk):
                    chunks.appendleft(chunk[len(answers) :])
            return ""

        said = [""]
        with self._lock:
            try:
                # Repeat: a process may fail after the others saw no chunk left and returned.
                while chunks and not all(said):
                    said = list(self._threads.map(serve, self._children))
            finally:
                chunks.clear()  # stops the threads if the run is interrupted
        return [result or ("error", max(said)) for result in results]


def _kill_all(children: list[_Child]) -> None:
    for child in children:
        child.kill()


@functools.cache
def shared_pool(name: str, workers: int, memory: int) -> Pool:
    """One pool for all tasks that run the same verifier."""
    return Pool(name, workers, memory)
