"""What ends one of several processes ends all of them, each with its message, within a minute."""

import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from devices import flags
from training.test_distributed import free_port

from dfpo_jax.training import distributed, failures

SCRIPT = Path(__file__).with_name("failing_process.py")


class Store:
    """What JAX's client does with the key-value store of a run."""

    def __init__(self):
        self.values = {}

    def key_value_dir_get(self, prefix):
        return sorted((k, v) for k, v in self.values.items() if k.startswith(prefix))

    def key_value_set(self, key, value):
        if key in self.values:
            raise RuntimeError(f"ALREADY_EXISTS: {key}")
        self.values[key] = value


class Left(BaseException):
    pass


@pytest.fixture
def processes(monkeypatch):
    """Three watchers of one run, none of them started."""

    def leave(code):
        raise Left(code)

    monkeypatch.setattr(failures.os, "_exit", leave)
    monkeypatch.setattr(failures.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(failures, "_GRACE", -5.0)  # waits for nobody
    store = Store()
    return [failures._Watcher(store, index, 3) for index in range(3)]


def ends(watcher):
    with pytest.raises(Left) as left:
        watcher.run()
    return left.value.args[0]


def test_the_first_failure_is_told_by_all_with_its_code(processes, capsys):
    first, second, third = processes
    second.announce(MemoryError("sampling does not\n fit"), 1)
    second.announce(ValueError("what came of it"), 2)
    third.announce(ValueError("another one"), 2)
    told = []
    for watcher in (first, third, second):
        assert ends(watcher) == 1
        told.append(capsys.readouterr().err.strip().partition(" on host ")[::2])
    assert [who for who, _ in told] == ["error: process 1 of 3", "", "error: process 1 of 3"]
    assert told[0][1].endswith(": MemoryError: sampling does not fit")  # the third told its own
    seen = [key for key in first._client.values if key.startswith("dfpo_jax/seen/")]
    assert len(seen) == 3


def test_user_errors_are_told_in_their_own_words(processes, capsys):
    processes[1].announce(ValueError("task.dataset is 'x'"), 2)
    assert ends(processes[0]) == 2
    assert capsys.readouterr().err.endswith(": task.dataset is 'x'\n")


def test_processes_without_failures_end_when_all_are_done(processes, monkeypatch):
    looks = []

    def sleep(seconds):
        looks.append(seconds)
        if len(looks) == 3:
            for watcher in processes[1:]:
                watcher._put(f"dfpo_jax/done/{watcher._index}", "")

    monkeypatch.setattr(failures.time, "sleep", sleep)
    processes[0].join = processes[0].run
    processes[0].finish()
    assert looks == [0.2] * 3


def test_a_process_that_failed_leaves_at_exit_with_its_code(processes):
    processes[2].announce(ValueError("bad"), 2)
    with pytest.raises(Left) as left:
        processes[2].finish()
    assert left.value.args == (2,)


def test_a_process_that_is_done_hears_of_a_later_failure(processes, capsys):
    processes[1]._finished = True
    processes[0].announce(OSError(28, "No space left on device"), 1)
    assert ends(processes[1]) == 1
    assert "No space left on device" in capsys.readouterr().err


def test_without_process_0_nothing_is_raised(processes):
    def gone(*inputs):
        raise RuntimeError("UNAVAILABLE")

    processes[1]._client.key_value_dir_get = processes[1]._client.key_value_set = gone
    processes[1].announce(ValueError("bad"), 2)
    with pytest.raises(Left):
        processes[1].finish()


def test_a_run_of_one_process_only_raises():
    failures.watch()
    with pytest.raises(ValueError, match="bad"), failures.shared():
        raise ValueError("bad")
    assert failures._watcher is None


def start_processes(how, which, count, workdir):
    """The processes of a run, one after the other."""
    address, processes = f"localhost:{free_port()}", []
    for index in range(count):
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": flags(),
            distributed.ADDRESS: address,
            distributed.COUNT: str(count),
            distributed.INDEX: str(index),
        }
        command = [sys.executable, str(SCRIPT), how, str(which), str(workdir)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        processes.append(subprocess.Popen(command, env=environment, **pipes))
    return processes


def run_processes(*run):
    """The exit code of each process, seconds until all had ended, and what each printed."""
    begun, processes = time.monotonic(), start_processes(*run)
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    return [process.returncode for process in processes], time.monotonic() - begun, outputs


def lines(output):
    return [line for line in output.splitlines() if line.startswith("error: ")]


FAILING = {  # how, which, count: the exit code of all, and the message
    ("memory", 1, 3): (1, "MemoryError: sampling does not fit the devices"),
    ("memory", 0, 2): (1, "MemoryError: sampling does not fit the devices"),
    ("disk", 1, 2): (1, "OUT_OF_RANGE: Error writing"),
    ("disk", 0, 2): (1, "Error writing"),
    ("late", 0, 2): (1, "No space left on device"),
    ("bug", 0, 2): (1, "IndexError: list index out of range"),
    ("verifier", 1, 2): (2, "verifier 'm:f' cannot be started"),
}
KILLED = ("killed", 1, 2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What `run_processes` gives of each, later; a few run at once, as they mostly wait."""
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        yield {
            run: pool.submit(run_processes, *run, tmp_path_factory.mktemp(run[0]))
            for run in (KILLED, *FAILING)  # the longest first
        }
        pool.shutdown(cancel_futures=True)


@pytest.mark.slow
@pytest.mark.parametrize("run", FAILING, ids=lambda run: "-".join(map(str, run)))
def test_one_failure_ends_all_processes(run, runs):
    (_, which, count), (code, message) = run, FAILING[run]
    codes, seconds, outputs = runs[run].result()
    assert codes == [code] * count, "\n".join(outputs)[-4000:]
    assert seconds < 90.0  # the start included
    for index, output in enumerate(outputs):
        assert message in output
        if index != which:
            (line,) = lines(output)
            assert line.startswith(f"error: process {which} of {count} on host ")


@pytest.mark.slow
def test_a_killed_process_ends_the_others_within_a_minute(runs):
    codes, seconds, _ = runs[KILLED].result()
    assert codes[1] == -signal.SIGKILL and codes[0] != 0 and seconds < 90.0


@pytest.mark.slow
def test_the_processes_of_a_run_share_its_lock_and_another_run_is_refused(tmp_path):
    first = start_processes("lock", 0, 2, tmp_path)
    try:
        for process in first:
            assert "ready\n" in process.stdout  # reads until there
        owner = json.loads((tmp_path / ".lock").read_text())
        assert owner["pid"] == first[0].pid
        codes, seconds, outputs = run_processes("lock", 0, 2, tmp_path)
    finally:
        for process in first:
            process.kill()
            process.communicate()
    assert codes == [2, 2] and seconds < 90.0
    for output in outputs:
        (line,) = lines(output)
        assert f"in use by process {first[0].pid} on host" in line
