"""Where compiled programs are kept, and that a run does not depend on it."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from dfpo_jax.training import compilation_cache

ROOT = pathlib.Path(__file__).resolve().parents[2]
DIRECTORY, ENABLED = "JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE"
SECONDS = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
CONFIGURED = {
    "jax_compilation_cache_dir": None,
    "jax_enable_compilation_cache": True,
    "jax_persistent_cache_min_compile_time_secs": 1.0,
}


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """JAX and the environment as they are where nobody has set anything; the home is `tmp_path`."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in (DIRECTORY, ENABLED, SECONDS, "XDG_CACHE_HOME"):
        os.environ.pop(name, None)
    os.environ["HOME"] = str(tmp_path)
    kept = {name: getattr(jax.config, name) for name in CONFIGURED}
    for name, value in CONFIGURED.items():
        jax.config.update(name, value)
    yield tmp_path
    for name, value in kept.items():
        jax.config.update(name, value)


def configured():
    """What JAX would do: a directory or None, whether it uses one, and from how many seconds on."""
    return tuple(getattr(jax.config, name) for name in CONFIGURED)


@pytest.mark.parametrize(
    ("base", "found"),
    [("", ".cache/dfpo_jax"), ("relative", ".cache/dfpo_jax"), ("{}/x", "x/dfpo_jax")],
)
def test_the_default_is_in_the_users_cache(fresh, base, found):
    os.environ["XDG_CACHE_HOME"] = base.format(fresh)
    before = dict(os.environ)
    compilation_cache.set_up(None)
    assert configured() == (str(fresh / found), True, 0.1)
    assert (fresh / found).stat().st_mode & 0o777 == 0o700  # whoever writes there runs code here
    assert dict(os.environ) == before  # a study's workers have a cache of their own


@pytest.mark.parametrize("directory", ["/somewhere", ""])
def test_what_jax_is_told_wins_over_the_default(fresh, directory):
    jax.config.update("jax_compilation_cache_dir", directory)
    compilation_cache.set_up(None)
    assert configured() == (directory, True, 1.0) and not os.listdir(fresh)


def test_what_jax_is_told_not_to_do_is_not_done(fresh):
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.set_up(None)
    assert configured() == (None, False, 1.0) and not os.listdir(fresh)


def test_the_flag_wins_over_all_and_holds_for_processes_that_are_started(fresh):
    for name, value in {DIRECTORY: "/somewhere", ENABLED: "false", SECONDS: "3"}.items():
        os.environ[name] = value
    jax.config.update("jax_compilation_cache_dir", "/somewhere")
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.set_up("~/mine")
    assert configured() == (str(fresh / "mine"), True, 1.0)  # SECONDS is the user's
    assert (os.environ[DIRECTORY], os.environ[ENABLED]) == (str(fresh / "mine"), "true")
    compilation_cache.set_up("")
    assert not jax.config.jax_enable_compilation_cache and os.environ[ENABLED] == "false"


def test_the_flag_takes_a_url(fresh):
    compilation_cache.set_up("gs://bucket/compiled")
    assert configured() == ("gs://bucket/compiled", True, 0.1) and not os.listdir(fresh)


@pytest.mark.parametrize("named", [None, "~/.cache"])
def test_without_a_place_to_write_a_run_goes_on(fresh, caplog, named):
    (fresh / ".cache").write_text("")
    jax.config.update("jax_compilation_cache_dir", None if named is None else "/somewhere")
    before = dict(os.environ)
    compilation_cache.set_up(named)
    assert configured() == (None, True, 1.0) and dict(os.environ) == before
    (record,) = caplog.records
    place = fresh / ".cache" / ("" if named else "dfpo_jax")
    assert f"not kept, as {place} cannot be written (" in record.getMessage()


def test_several_processes_use_no_default(fresh):
    compilation_cache.set_up(None)
    compilation_cache.leave_default()
    assert configured()[0] is None
    for directory in ("~/shared", compilation_cache.default_directory()):
        compilation_cache.set_up(directory)
        compilation_cache.leave_default()
        assert configured()[0] == os.path.expanduser(directory)


def test_entries_unused_for_longest_leave_first(tmp_path):
    for age, name in enumerate(["new-cache", "read-cache", "old-cache", "older-cache", "notes"]):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    os.utime(tmp_path / "read-cache", (1e9 + 1, 1e9 - 1))
    compilation_cache._shrink(str(tmp_path), 400)
    assert len(os.listdir(tmp_path)) == 5
    compilation_cache._shrink(str(tmp_path), 250)
    assert sorted(os.listdir(tmp_path)) == ["new-cache", "notes", "read-cache"]
    compilation_cache._shrink(str(tmp_path), 150)
    assert sorted(os.listdir(tmp_path)) == ["notes", "read-cache"]


PROGRAM = """
import jax
from dfpo_jax.training import command_line
command_line.run(lambda: print(jax.config.jax_compilation_cache_dir))
"""


def test_a_program_takes_the_flag_and_tells_of_it(tmp_path):
    shown = []
    for flag in (f"--compilation_cache={tmp_path / 'mine'}", "--help"):
        command = [sys.executable, "-c", PROGRAM, flag]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert not done.stderr
        shown.append(done.stdout)
    assert shown[0] == f"{tmp_path / 'mine'}\n" and "--compilation_cache: Dir" in shown[1]


TRAIN = """
import atexit, runpy
import jax
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append("cache_hits" in name))
atexit.register(lambda: print("hits:", sum(hits)))
runpy.run_path("experiments/train.py", run_name="__main__")
"""


@pytest.mark.slow
def test_a_run_does_not_depend_on_what_is_kept(tmp_path):
    rows, hits = {}, {}
    for name, directory in {
        "none": "",
        "cold": tmp_path / "kept",
        "warm": tmp_path / "kept",
    }.items():
        command = [sys.executable, "-c", TRAIN, "--config=tests/tools/tiny_config.py"]
        command += [f"--workdir={tmp_path / name}", f"--compilation_cache={directory}"]
        command += ["--config.train.iterations=2"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        hits[name] = int(done.stdout.rpartition("hits: ")[2])
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        rows[name] = [
            {k: v for k, v in json.loads(line).items() if not k.startswith("time/")}
            for line in lines
        ]
    assert len(rows["none"]) == 3 and "rollout/reward" in rows["none"][-1]
    assert rows["none"] == rows["cold"] == rows["warm"]
    assert hits["none"] == 0 and hits["warm"] > max(10, hits["cold"])
