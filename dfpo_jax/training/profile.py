"""A trace of some iterations, for TensorBoard, XProf or Perfetto."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

DIRECTORY = "profile"
_FIRST = 2  # in the first iteration of a process everything compiles


@contextlib.contextmanager
def tracing(workdir: Path, iterations: int) -> Iterator[Callable[[], None]]:
    """Traces the second and following iterations of this process to `workdir/profile`.

    Yields a function to call at the start of every iteration; the trace ends after `iterations` of
    them, or with the run. Every process of a run writes its own.

    Args:
      workdir: of the run.
      iterations: how many to trace; 0 for none.
    """
    begun, active = 0, False

    def stop():
        nonlocal active
        if active:
            jax.profiler.stop_trace()
            active = False

    def begin():
        nonlocal begun, active
        begun += 1
        if begun == _FIRST and iterations > 0:
            jax.profiler.start_trace(workdir / DIRECTORY)
            active = True
        elif begun == _FIRST + iterations:
            stop()

    try:
        yield begin
    finally:
        stop()
