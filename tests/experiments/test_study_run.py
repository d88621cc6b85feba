"""A study that is killed and goes on has the rows of one that was not."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = "--config=tests/tiny_study.py:two_cells"
TIMES = ("seconds", "cpu_seconds")


def start(*words):
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    return subprocess.Popen(
        [sys.executable, "experiments/compare.py", *words],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def rows(workdir):
    path = workdir / "results.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    made = sorted((json.loads(line) for line in lines), key=lambda row: row["cell"])
    return [{k: v for k, v in row.items() if k not in TIMES} for row in made]


def workers(pid):
    """Processes of the pool, which are alive."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            command, stat = (path / "cmdline").read_bytes(), (path / "stat").read_text()
        except OSError:
            continue
        if b"spawn_main" in command and int(stat.rpartition(")")[2].split()[1]) == pid:
            found.append(int(path.name))
    return found


def until(happened, seconds=240):
    end = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)
    return found


def alive(pid):
    path = pathlib.Path(f"/proc/{pid}/stat")
    return path.exists() and path.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_study_goes_on_after_kills_with_equal_rows(tmp_path):
    process = start(CONFIG, f"--workdir={tmp_path}", "--workers=1")
    (worker,) = until(lambda: workers(process.pid))
    until(lambda: list(tmp_path.glob("cells/cell_*")))
    os.kill(worker, signal.SIGKILL)  # its cell is run again by another
    until(lambda: rows(tmp_path))
    (worker,) = until(lambda: workers(process.pid))
    process.kill()
    process.communicate()
    until(lambda: not alive(worker))
    assert [row["noise"] for row in rows(tmp_path)] == ["clean"]

    process = start(CONFIG, f"--workdir={tmp_path}", "--workers=1")
    out, errors = process.communicate(timeout=400)
    assert process.returncode == 0 and "1 cells are done, 1 are left" in errors, errors
    assert "### Tolerance" in out and (tmp_path / "compare.html").exists()
    assert list((tmp_path / "cells").iterdir()) == []
    found = rows(tmp_path)
    assert len(found) == 2 and len({row["metrics"] for row in found}) == 2

    # Both cells again, from start to end.
    process = start(CONFIG, f"--workdir={tmp_path}", "--workers=1", "--check=2")
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 0 and errors.count(": the same") == 2, errors
    assert rows(tmp_path) == found

    # A base run without a warm start, whose weights are those of the one above.
    (weights,) = (tmp_path / "warm_starts").iterdir()
    given = [f"--config.run.weights.source={weights}", "--config.run.warm_start.steps=0"]
    words = [CONFIG, *given, f"--workdir={tmp_path / 'given'}", "--workers=1"]
    process = start(*words)
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    again = [(row["noise"], row["metrics"]) for row in rows(tmp_path / "given")]
    assert sorted(again) == sorted((row["noise"], row["metrics"]) for row in found), errors
    assert not (tmp_path / "given" / "warm_starts").exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ((), "--workdir must be set"),
        (("--workdir=x",), "--config must be set, except with --report"),
        (("--results=nowhere.jsonl", "--report"), "there is no file nowhere.jsonl"),
        (("--workdir=x", "--list", "--report"), "--list and --report cannot be combined"),
    ],
)
def test_wrong_flags_are_one_line_and_exit_code_2(words, named):
    process = start(*words)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2 and named in errors and errors.count("\n") == 1


@pytest.mark.slow
def test_a_study_of_published_weights_is_listed_without_them(tmp_path):
    words = ["--config=configs/study_smollm2.py", f"--workdir={tmp_path}", "--list"]
    out, errors = start(*words, "--only=algorithm=grpo,noise=flip", "--workers=1").communicate()
    *lines, _, last = out.splitlines()
    assert len(lines) == 6 + 9 and all(" grpo " in line for line in lines), errors
    assert last == (
        "15 cells left, about 1.2 hours with 1 worker if a cell takes 300 seconds; none has been "
        "timed yet"
    )
