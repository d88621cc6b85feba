"""Times programs that take turns in one process, so that other load affects all of them."""

import statistics
import time
from collections.abc import Callable

import jax


def alternate(programs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each program; each first runs once to compile, then they take turns."""
    times = {name: [] for name in programs}
    for turn in range(repeats + 1):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program())
            if turn > 0:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}
