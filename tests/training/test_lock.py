"""One run a directory: a second one is refused, the system takes the lock back from the dead."""

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dfpo_jax.training import lock

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import os, subprocess, sys, time
from pathlib import Path
from dfpo_jax.training import lock
with lock.kept(Path(sys.argv[1])):
    pass
if sys.argv[2] == "program":  # as the verifiers' processes are started
    child = subprocess.Popen(["sleep", "60"]).pid
if sys.argv[2] == "fork":
    if os.fork():
        time.sleep(60)
    child = os.getpid()  # told by the child: it has dropped the lock by then
if sys.argv[2] == "alone":
    child = 0
print(child, flush=True)
time.sleep(60)
"""


def hold(workdir, how="alone"):
    """A process that keeps the lock, and the child it started."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(workdir), how],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    return holder, int(holder.stdout.readline())


def end(holder):
    os.killpg(holder.pid, signal.SIGKILL)
    holder.wait()
    holder.stdout.close()


def take(workdir):
    with lock.kept(Path(workdir)):
        pass


def content(directory):
    return {str(p): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@pytest.fixture
def released():
    """Gives back at the end what this process has locked."""
    yield
    for file in lock._held.values():
        os.close(file)
    lock._held.clear()


def test_a_second_process_is_refused_by_whatever_path_until_the_first_is_killed(
    tmp_path, released, monkeypatch
):
    workdir = tmp_path / "run"
    workdir.mkdir()
    (tmp_path / "link").symlink_to(workdir)
    monkeypatch.chdir(tmp_path)
    holder, _ = hold(workdir)
    before = content(workdir)
    owner = f"in use by process {holder.pid} on host {socket.gethostname()}; wait"
    for path in (workdir, "run", tmp_path / "link", "run/../link/../run"):
        with pytest.raises(ValueError, match=owner) as caught:
            take(path)
        assert "\n" not in str(caught.value)
    assert content(workdir) == before
    end(holder)  # by SIGKILL
    take(tmp_path / "link")
    assert json.loads((workdir / lock.FILE).read_text())["pid"] == os.getpid()
    take(workdir)  # this process has it, and may ask again


@pytest.mark.parametrize("how", ["program", "fork"])
def test_children_do_not_keep_the_lock(tmp_path, released, how):
    holder, child = hold(tmp_path, how)
    with pytest.raises(ValueError, match="in use by process"):
        take(tmp_path)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    os.kill(child, 0)  # it lives
    take(tmp_path)
    end(holder)


def test_a_child_of_the_holder_is_refused_too(tmp_path, released):
    take(tmp_path)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert "in use by process" in pool.apply(refusal, (str(tmp_path),))


def refusal(workdir):
    try:
        take(workdir)
    except ValueError as error:
        return str(error)
    return ""


def test_what_fails_inside_gives_the_lock_back_and_leaves_no_trace(tmp_path, released):
    def fails():
        with lock.kept(tmp_path):
            assert (tmp_path / lock.FILE).exists()
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        fails()
    assert not list(tmp_path.iterdir())
    old = '{"pid": 1, "host": "gone", "start": ""}'
    (tmp_path / lock.FILE).write_text(old)
    with pytest.raises(OSError, match="no space"):
        fails()
    assert (tmp_path / lock.FILE).read_text() == old
    holder, _ = hold(tmp_path)
    end(holder)


def test_a_lock_file_that_was_replaced_meanwhile_is_not_the_lock(tmp_path, released, monkeypatch):
    real, calls = fcntl.flock, []

    def replaced(file, how):
        real(file, how)
        calls.append(file)
        if len(calls) == 1:  # its former owner gave it back and removed it
            (tmp_path / lock.FILE).unlink()

    monkeypatch.setattr(lock.fcntl, "flock", replaced)
    take(tmp_path)
    assert len(calls) == 2 and refused_elsewhere(tmp_path)


def refused_elsewhere(workdir):
    code = "import sys; from pathlib import Path; from dfpo_jax.training import lock\n"
    code += "with lock.kept(Path(sys.argv[1])): pass"
    command = [sys.executable, "-c", code, str(workdir)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    return f"in use by process {os.getpid()} on host" in done.stderr


def test_a_file_system_without_locks_is_said_and_this_host_is_still_watched(
    tmp_path, released, monkeypatch, caplog
):
    def unsupported(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    path, host = tmp_path / lock.FILE, socket.gethostname()
    holder = subprocess.Popen(["sleep", "60"], start_new_session=True, stdout=subprocess.PIPE)
    time.sleep(0.05)
    owner = {"pid": holder.pid, "host": host, "start": lock._start(holder.pid)}
    path.write_text(json.dumps(owner))
    with pytest.raises(ValueError, match=f"in use by process {holder.pid} on host {host}"):
        take(tmp_path)
    end(holder)
    gone = [owner, owner | {"pid": os.getppid()}, owner | {"host": "another", "pid": 1}]
    for other in gone:  # dead; a number given anew; on another host, which cannot be asked
        path.write_text(json.dumps(other))
        caplog.clear()
        take(tmp_path)
        assert "has no locks: a second run there is refused on this host only" in caplog.text
        os.close(lock._held.popitem()[1])


def test_a_directory_that_cannot_be_written_is_an_error_of_the_system(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        take(tmp_path / "nowhere")
