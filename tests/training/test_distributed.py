"""Two processes on the loopback train as one process with all devices does."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from devices import flags

from dfpo_jax.training import distributed
from dfpo_jax.training.metrics import read_metrics

SCRIPT = Path(__file__).with_name("multiprocess_run.py")


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def run_processes(workdir, count):
    """`count` processes with 8 / count devices each; their output."""
    address = f"localhost:{free_port()}"
    processes = []
    for index in range(count):
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": flags(8 // count),
        }
        if count > 1:
            environment |= {
                distributed.ADDRESS: address,
                distributed.COUNT: str(count),
                distributed.INDEX: str(index),
            }
        processes.append(
            subprocess.Popen(
                [sys.executable, str(SCRIPT), str(workdir)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    outputs = [process.communicate(timeout=900)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(outputs)[-4000:]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("alone")
    run_processes(workdir, 1)
    return read_metrics(workdir)


@pytest.mark.slow
def test_two_processes_equal_one(alone, tmp_path):
    run_processes(tmp_path / "run", 2)
    together = read_metrics(tmp_path / "run")
    assert [row["step"] for row in together] == [0, 1, 2]
    # The first iteration takes the longest, the second its bucket.
    assert [row["rollout/prompt_slots"] for row in together[1:]] == [9, 6]
    for one, several in zip(alone, together, strict=True):
        assert one.keys() == several.keys()
        for key in one:
            if not key.startswith("time/"):
                np.testing.assert_allclose(
                    several[key], one[key], rtol=1e-4, atol=1e-6, err_msg=key
                )
    assert (tmp_path / "run" / "report.html").exists()
    assert (tmp_path / "run" / "checkpoints" / "2").is_dir()


def test_the_environment_says_how_processes_meet(monkeypatch):
    calls = []
    monkeypatch.setattr(distributed.jax.distributed, "initialize", lambda *a, **_: calls.append(a))
    explicit = {distributed.ADDRESS: "h:1", distributed.COUNT: "4", distributed.INDEX: "3"}
    assert distributed.initialize(explicit) == "explicit"
    assert distributed.initialize({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}) == "slurm"
    assert distributed.initialize({"TPU_WORKER_HOSTNAMES": "a,b"}) == "tpu"
    assert distributed.initialize({distributed.AUTOMATIC: "1"}) == "tpu"
    assert calls == [("h:1", 4, 3), (), (), ()]
    assert distributed.initialize({}) == "single"
    assert distributed.initialize({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1"}) == "single"
    assert distributed.initialize({"TPU_WORKER_HOSTNAMES": "localhost"}) == "single"
    assert len(calls) == 4


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({distributed.ADDRESS: "h:1"}, "set without JAX_NUM_PROCESSES, JAX_PROCESS_ID"),
        (
            {distributed.ADDRESS: "h:1", distributed.COUNT: "two", distributed.INDEX: "0"},
            "is 'two'",
        ),
        (
            {distributed.ADDRESS: "h:1", distributed.COUNT: "2", distributed.INDEX: "2"},
            r"is 2; it must lie in \[0, 2\)",
        ),
    ],
)
def test_bad_environments_are_named(environment, message):
    with pytest.raises(ValueError, match=message):
        distributed.initialize(environment)
