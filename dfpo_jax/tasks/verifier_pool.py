"""Verifiers in child processes that are killed when they take too long."""

import concurrent.futures
import functools
import os
import pathlib
import pickle
import queue
import select
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from typing import Any

_WORKER = pathlib.Path(__file__).with_name("verifier_worker.py")
_START_SECONDS = 120.0  # imports on a busy machine


class _Child:
    """One process; dead until the first request and after every failure."""

    def __init__(self, name: str, memory: int):
        self._name, self._memory, self._process = name, memory, None

    def start(self) -> None:
        """Start the process, unless it runs.

        Raises:
          ValueError: the verifier cannot be imported.
        """
        if self._process is not None and self._process.poll() is None:
            return
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        self._process = subprocess.Popen(
            # -P: the script's own directory holds modules named as packages are.
            [sys.executable, "-P", str(_WORKER), self._name, str(self._memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,
        )
        status, value = self._receive(_START_SECONDS)
        if status != "ready":
            self.kill()
            raise ValueError(f"verifier {self._name!r} cannot be loaded: {value}")

    def ask(self, request: tuple, seconds: float) -> tuple[str, Any]:
        """("ok", reward), ("error", message) or ("timeout", message)."""
        self.start()
        try:
            pickle.dump((*request, seconds), self._process.stdin)
            self._process.stdin.flush()
            status, value = self._receive(seconds)
        except OSError as error:
            status, value = "died", str(error)
        if status in ("timeout", "died"):
            self.kill()
        return ("error" if status == "died" else status), value

    def _receive(self, seconds: float) -> tuple[str, Any]:
        """The next message; reads until it is whole or the time is over."""
        deadline, received = time.monotonic() + seconds, b""
        while True:
            left = max(deadline - time.monotonic(), 0.0)
            if not select.select([self._process.stdout], [], [], left)[0]:
                return "timeout", f"no verdict within {seconds} s"
            part = os.read(self._process.stdout.fileno(), 65536)
            if not part:
                return "died", f"its process ended with code {self._process.wait()}"
            received += part
            try:
                return pickle.loads(received)
            except (EOFError, pickle.UnpicklingError):
                continue

    def kill(self) -> None:
        """End the process, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()
            try:
                self._process.stdin.close()
            except OSError:  # what was not yet sent
                pass
            self._process = None


class Pool:
    """Processes that each run the same verifier.

    Args:
      name: "math_verify" or "module:function".
      workers: number of processes, >= 1.
      memory: bytes of address space a process may take, 0 for no limit.
    """

    def __init__(self, name: str, workers: int, memory: int = 0):
        """Starts nothing yet."""
        self._children = [_Child(name, memory) for _ in range(workers)]
        self._idle: queue.Queue[_Child] = queue.Queue()
        for child in self._children:
            self._idle.put(child)
        self._threads = concurrent.futures.ThreadPoolExecutor(workers)
        weakref.finalize(self, _kill_all, self._children)  # at exit, too

    def check(self) -> None:
        """Start one process.

        Raises:
          ValueError: the verifier cannot be imported.
        """
        self._children[0].start()

    def run(self, requests: Sequence[tuple], seconds: float) -> list[tuple[str, Any]]:
        """("ok", reward), ("error", message) or ("timeout", message) for each request.

        Args:
          requests: (response, answer, payload) each; the payload can be pickled.
          seconds: wall time for each.

        Raises:
          ValueError: the verifier cannot be imported.
        """

        def one(request):
            child = self._idle.get()
            try:
                return child.ask(request, seconds)
            finally:
                self._idle.put(child)

        return list(self._threads.map(one, requests))


def _kill_all(children: list[_Child]) -> None:
    for child in children:
        child.kill()


@functools.cache
def shared_pool(name: str, workers: int, memory: int) -> Pool:
    """One pool for all tasks that run the same verifier."""
    return Pool(name, workers, memory)
