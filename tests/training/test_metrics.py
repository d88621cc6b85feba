import builtins
import io
import json
import math
import resource
import signal
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorboardX.proto.event_pb2 as event_pb2

from dfpo_jax.training import metrics
from dfpo_jax.training.metrics import MetricsWriter, Progress, read_metrics


def open_writer(path, **options):
    return MetricsWriter(path, **{"tensorboard": False, **options})


def write_steps(path, steps, **options):
    writer = open_writer(path, **options)
    for step in steps:
        writer.write(step, {"a": step / 4})
    writer.close()


def steps_of(path):
    return [row["step"] for row in read_metrics(path)]


def test_rows_are_whole_lines_of_strict_json(tmp_path):
    writer = open_writer(tmp_path / "deep" / "run")
    values = {
        "float": 0.1,
        "int": 3,
        "float32": np.float32(0.25),
        "bfloat16": jnp.bfloat16(1.5),
        "array": jnp.float32(2.0),
        "nan": float("nan"),
    }
    writer.write(7, values)
    path = tmp_path / "deep" / "run" / "metrics.jsonl"
    text = path.read_text()  # before close: the row is already there
    assert text.endswith("\n") and text.count("\n") == 1
    row = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    expected = {"step": 7, "float": 0.1, "int": 3, "float32": 0.25, "bfloat16": 1.5, "array": 2.0}
    assert row == expected | {"nan": None}
    writer.close()
    writer.close()
    (back,) = read_metrics(path.parent)
    assert math.isnan(back.pop("nan"))
    assert back == expected and type(back["step"]) is int


@pytest.mark.parametrize(
    "value",
    [math.inf, -math.inf, "0.5", None, 1j, True, [1.0], np.zeros(2), np.float32("inf")],
    ids=str,
)
def test_other_values_are_rejected_by_name_and_nothing_is_written(tmp_path, value):
    writer = open_writer(tmp_path)
    with pytest.raises(ValueError, match="policy/loss"):
        writer.write(0, {"fine": 1.0, "policy/loss": value})
    writer.close()
    assert read_metrics(tmp_path) == []


@pytest.mark.parametrize("step", [-1, 1.0, True, "1"])
def test_bad_steps_are_rejected(tmp_path, step):
    writer = open_writer(tmp_path)
    with pytest.raises(ValueError, match="step is"):
        writer.write(step, {})
    with pytest.raises(ValueError, match='"step"'):
        writer.write(0, {"step": 1.0})
    writer.close()


@pytest.mark.parametrize("resume,kept", [(None, 6), (9, 6), (5, 6), (3, 4), (0, 1), (-1, 0)])
def test_resume_drops_later_rows(tmp_path, resume, kept):
    write_steps(tmp_path, range(6))
    write_steps(tmp_path, range(kept, 8), resume_step=resume)
    assert read_metrics(tmp_path) == [{"step": s, "a": s / 4} for s in range(8)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.jsonl"]


@pytest.mark.parametrize("tail", [b'{"step": 3, "a": 0.', b"{", b"\x00\x00\xff", b"3\n", b"{}\n"])
@pytest.mark.parametrize("resume", [None, 2])
def test_a_broken_last_line_is_skipped_and_then_dropped(tmp_path, tail, resume):
    write_steps(tmp_path, range(3))
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + tail)
    assert steps_of(tmp_path) == [0, 1, 2]
    write_steps(tmp_path, [3], resume_step=resume)
    assert steps_of(tmp_path) == [0, 1, 2, 3]
    assert path.read_bytes().count(b"\n") == 4


def test_a_whole_last_row_without_its_newline_is_kept(tmp_path):
    write_steps(tmp_path, range(3))
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    write_steps(tmp_path, [3], resume_step=2)
    assert steps_of(tmp_path) == [0, 1, 2, 3]


def test_nan_survives_a_rewrite(tmp_path):
    writer = open_writer(tmp_path)
    writer.write(0, {"a": math.nan})
    writer.write(1, {"a": 1.0})
    writer.close()
    write_steps(tmp_path, [1], resume_step=0)
    assert math.isnan(read_metrics(tmp_path)[0]["a"])


def test_a_broken_line_in_the_middle_is_an_error(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"ste\n{"step": 2}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_metrics(tmp_path)
    with pytest.raises(ValueError, match="line 2"):
        open_writer(tmp_path, resume_step=0)


def test_a_crash_in_the_rewrite_leaves_the_old_file(tmp_path, monkeypatch):
    write_steps(tmp_path, range(4))
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def crash(*_):
        raise OSError("power cut")

    monkeypatch.setattr(metrics.os, "replace", crash)
    with pytest.raises(OSError, match="power cut"):
        open_writer(tmp_path, resume_step=1)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_reading_without_a_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_metrics(tmp_path)


def events(path):
    """(step, tag, value) of every event, reading TensorBoard's record framing by hand."""
    found = []
    for file in sorted((path / "tensorboard").iterdir()):
        data, place = file.read_bytes(), 0
        while place < len(data):
            size = int.from_bytes(data[place : place + 8], "little")
            event = event_pb2.Event.FromString(data[place + 12 : place + 12 + size])
            place += 16 + size
            if event.HasField("session_log"):
                found.append((event.step, "restart", event.session_log.status))
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
    return found


def test_tensorboard_gets_every_finite_value_and_the_restart(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(1, {"rollout/reward": 0.5, "policy/kl": math.nan})
    writer.write(2, {"rollout/reward": 0.75})
    writer.close()
    assert events(tmp_path) == [(1, "rollout/reward", 0.5), (2, "rollout/reward", 0.75)]
    MetricsWriter(tmp_path, resume_step=1).close()
    assert (2, "restart", event_pb2.SessionLog.START) in events(tmp_path)


def test_no_tensorboard_unless_asked_for(tmp_path):
    write_steps(tmp_path, [0])
    assert not (tmp_path / "tensorboard").exists()


def test_missing_wandb_says_what_to_install(tmp_path, monkeypatch):
    real = builtins.__import__

    def without_wandb(name, *args, **kwargs):
        if name == "wandb":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_wandb)
    with pytest.raises(ImportError, match=r"pip install 'dfpo-jax\[wandb\]'"):
        open_writer(tmp_path, wandb_project="project")


def test_wandb_gets_the_rows_under_one_id(tmp_path, monkeypatch):
    starts, rows, ends = [], [], []

    def init(**options):
        starts.append(options)
        log = lambda values, step: rows.append((step, values))  # noqa: E731
        return types.SimpleNamespace(log=log, finish=lambda: ends.append(1))

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    write_steps(tmp_path, [0, 1], wandb_project="project")
    write_steps(tmp_path, [2], wandb_project="project", resume_step=1)
    assert rows == [(0, {"a": 0.0}), (1, {"a": 0.25}), (2, {"a": 0.5})]
    assert len(ends) == 2
    assert starts[0] == starts[1]
    assert starts[0]["project"] == "project" and starts[0]["id"]


def test_explained_variance_against_known_values():
    observed = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    assert metrics.explained_variance(observed + 3.0, observed) == pytest.approx(1.0, abs=1e-6)
    assert metrics.explained_variance(np.full((40, 5), 2.0), observed) == pytest.approx(0.0)
    assert metrics.explained_variance(-observed, observed) == pytest.approx(-3.0)
    assert metrics.explained_variance(observed / 2, observed) == pytest.approx(0.75)


def test_explained_variance_is_nan_without_variance():
    assert math.isnan(metrics.explained_variance(np.arange(7.0), np.full(7, 0.1)))
    assert math.isnan(metrics.explained_variance(np.zeros(0), np.zeros(0)))
    with pytest.raises(ValueError, match="predicted"):
        metrics.explained_variance(np.zeros(2), np.zeros(3))


def test_peak_memory_counts_what_was_held():
    block = np.ones(2**24)  # 128 MiB
    peak = metrics.peak_memory_bytes()
    assert isinstance(peak, int)
    assert block.nbytes < peak < 2**40


@pytest.mark.parametrize("platform,host", [("linux", 1024 * 1000), ("darwin", 1000)])
def test_peak_memory_is_the_larger_of_host_and_device(monkeypatch, platform, host):
    usage = types.SimpleNamespace(ru_maxrss=1000)
    monkeypatch.setattr(metrics.resource, "getrusage", lambda _: usage)
    monkeypatch.setattr(metrics.sys, "platform", platform)
    stats = [None, {}, {"peak_bytes_in_use": 5}]

    def devices():
        return [types.SimpleNamespace(memory_stats=lambda s=s: s) for s in stats]

    monkeypatch.setattr(jax, "local_devices", devices)
    assert metrics.peak_memory_bytes() == host
    stats.append({"peak_bytes_in_use": 2_000_000})
    assert metrics.peak_memory_bytes() == 2_000_000


VALUES = {"rollout/reward": 0.5, "rollout/accuracy": 0.25, "policy/kl_old": 0.0012}


def run_progress(total, start=0, values=VALUES, stream=None):
    stream = io.StringIO() if stream is None else stream
    progress = Progress(total, start, stream=stream)
    for done in range(start + 1, total + 1):
        progress.update(done, values)
    progress.close()
    progress.close()
    return stream.getvalue()


@pytest.mark.parametrize("total,start", [(1000, 0), (1000, 400), (25, 0), (3, 0), (1, 0), (7, 7)])
def test_plain_lines_come_about_every_tenth(total, start):
    lines = run_progress(total, start).splitlines()
    done = [int(line.split()[1].split("/")[0]) for line in lines]
    if start == total:
        assert lines == []
        return
    assert done[0] == start + 1 and done[-1] == total
    assert len(done) <= 11
    assert np.all(np.diff(done) <= math.ceil(total / 10))


def test_plain_lines_hold_the_figures():
    last = run_progress(20).splitlines()[-1]
    assert last == "iteration 20/20, reward 0.500, accuracy 25.0%, KL 0.0012, 00:00 left"
    assert "KL" not in run_progress(20, values={"rollout/reward": math.nan})


def test_time_left_follows_the_clock(monkeypatch):
    clock = iter([100.0, 110.0])
    monkeypatch.setattr(metrics.time, "monotonic", lambda: next(clock))
    stream = io.StringIO()
    Progress(50, 40, stream=stream).update(41, {})  # 10 s for one of 10 iterations
    assert stream.getvalue() == "iteration 41/50, 01:30 left\n"


def test_a_terminal_gets_a_bar():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    text = run_progress(20, 15, stream=Terminal())
    assert "20/20" in text and "15/20" in text
    assert "iteration" not in text
    assert "accuracy=25.0%" in text and "reward=0.500" in text and "KL=0.0012" in text


def test_a_row_that_does_not_fit_the_disk_is_an_error_and_is_taken_back(tmp_path):
    writer = open_writer(tmp_path)
    writer.write(0, {"a": 1.0})
    path = tmp_path / "metrics.jsonl"
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 7, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            writer.write(1, {"a": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    writer.write(2, {"a": 1.0})
    writer.close()
    assert steps_of(tmp_path) == [0, 2] and path.read_bytes().count(b"\n") == 2
