"""How programs are timed: by turns in one process, so that what else runs disturbs all alike."""

import statistics
import time
from collections.abc import Callable

import jax


def alternate(programs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each program; they take turns after one run each to compile."""
    times = {name: [] for name in programs}
    for turn in range(repeats + 1):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program())
            if turn > 0:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}
