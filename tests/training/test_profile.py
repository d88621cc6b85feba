"""Traces of iterations."""

import jax
import pytest

from dfpo_jax.training.profile import DIRECTORY, tracing


@pytest.fixture
def traced(monkeypatch):
    """(started or stopped, before which iteration)."""
    seen, number = [], [0]
    monkeypatch.setattr(jax.profiler, "start_trace", lambda path: seen.append(("on", number[0])))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: seen.append(("off", number[0])))
    return seen, number


@pytest.mark.parametrize(
    ("iterations", "expected"),
    [
        (0, []),
        (1, [("on", 2), ("off", 3)]),
        (2, [("on", 2), ("off", 4)]),
        (9, [("on", 2), ("off", 5)]),
    ],
)
def test_the_first_iteration_is_left_out_and_the_trace_ends_with_the_run(
    tmp_path, traced, iterations, expected
):
    seen, number = traced
    with tracing(tmp_path, iterations) as begin:
        for number[0] in range(1, 5):
            begin()
        number[0] = 5
    assert seen == expected


def test_a_trace_is_a_file(tmp_path):
    with tracing(tmp_path, 1) as begin:
        for _ in range(3):
            begin()
            jax.block_until_ready(jax.jit(lambda x: x + 1)(1.0))
    assert list((tmp_path / DIRECTORY).rglob("*.xplane.pb"))
