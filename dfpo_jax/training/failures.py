"""Ends all processes of a run when one fails, with its message."""

import atexit
import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

_FAILURE, _SEEN, _DONE = "dfpo_jax/failure", "dfpo_jax/seen", "dfpo_jax/done"
_PERIOD = 2.0  # seconds between two checks
_GRACE = 15.0  # seconds that a failed process has to end by itself
_watcher: "_Watcher | None" = None


def watch() -> None:
    """Start to watch for failures of the other processes; `distributed.initialize` calls it.

    Every two seconds a thread reads the key-value store that JAX runs in process 0. When a process
    has failed, the others print its message and end with its exit code, even while their main
    thread waits. If a process is killed, JAX ends the others when its heartbeats stop.
    """
    global _watcher
    from jax._src import distributed  # JAX has no public name for its key-value store

    state = distributed.global_state
    if _watcher is None and state.client is not None and state.num_processes > 1:
        _watcher = _Watcher(state.client, state.process_id, state.num_processes)
        _watcher.start()
        atexit.register(_watcher.finish)  # before JAX disconnects
        sys.excepthook = _announcing(sys.excepthook)


def announce(error: BaseException, code: int = 1) -> None:
    """Tell the other processes that this one fails; only the first failure of a run is announced.

    Args:
      error: the reason.
      code: exit code of all processes.
    """
    if _watcher is not None:
        _watcher.announce(error, code)


@contextlib.contextmanager
def shared(code: int = 1) -> Iterator[None]:
    """Announce exceptions that are raised inside.

    Use it inside `finally` clauses that wait for other processes; without it they wait forever. Do
    not use it around exceptions that all processes raise, such as a stop by signal.
    """
    try:
        yield
    except SystemExit:
        raise
    except BaseException as error:
        announce(error, code)
        raise


def _announcing(hook):
    def told(kind, error, trace):
        announce(error)
        hook(kind, error, trace)

    return told


class _Watcher(threading.Thread):
    def __init__(self, client: Any, index: int, count: int):
        super().__init__(name="failures", daemon=True)
        self._client, self._index, self._count = client, index, count
        self._code: int | None = None  # exit code after this process's own failure
        self._finished, self._pid = False, os.getpid()

    def run(self) -> None:
        while not (self._finished and self._number(_DONE) == self._count):
            time.sleep(0.2 if self._finished else _PERIOD)
            if failures := self._values(_FAILURE):
                self._end(json.loads(failures[0]))

    def announce(self, error: BaseException, code: int) -> None:
        if self._code is not None:
            return
        self._code = code
        words = " ".join(str(error).split())
        name = type(error).__name__
        words = words if isinstance(error, ValueError | OSError) and words else f"{name}: {words}"
        failure = {"process": self._index, "host": socket.gethostname(), "words": words}
        self._put(f"{_FAILURE}/first", json.dumps(failure | {"code": code}))

    def finish(self) -> None:
        """At exit, wait until all are done; meanwhile another's failure still ends this process."""
        if os.getpid() != self._pid:  # a forked child exits
            return
        if self._code is not None:
            self._leave(self._code)
        self._put(f"{_DONE}/{self._index}", "")
        self._finished = True
        self.join()

    def _end(self, failure: dict[str, Any]) -> None:
        failed = self._code is not None
        if failed:  # give the main thread time to end by itself, unless it waits for another
            time.sleep(_GRACE)
        if not failed or failure["process"] == self._index:
            who = f"process {failure['process']} of {self._count} on host {failure['host']}"
            with contextlib.suppress(OSError):  # the log may be on a full disk
                print(f"error: {who}: {failure['words']}", file=sys.stderr)
        self._leave(failure["code"])

    def _leave(self, code: int) -> None:
        self._put(f"{_SEEN}/{self._index}", "")
        if self._index == 0:  # the others read the message from it
            deadline = time.monotonic() + _GRACE + 5.0
            while self._number(_SEEN) < self._count and time.monotonic() < deadline:
                time.sleep(0.2)
            time.sleep(1.0)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code)  # other exit handlers would wait for the others

    def _values(self, prefix: str) -> list[str]:
        try:
            return [value for _, value in self._client.key_value_dir_get(f"{prefix}/")]
        except Exception:  # process 0 has ended; JAX ends this process
            return []

    def _number(self, prefix: str) -> int:
        return len(self._values(prefix))

    def _put(self, key: str, value: str) -> None:
        with contextlib.suppress(Exception):  # it exists already, or process 0 has ended
            self._client.key_value_set(key, value)
