"""Allows one run per directory, with a lock that ends with its process."""

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

_LOG = logging.getLogger(__name__)
FILE = ".lock"
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
_held: dict[tuple[int, int], int] = {}  # (device, inode) of a lock file -> its descriptor


@contextlib.contextmanager
def kept(workdir: Path) -> Iterator[None]:
    """Lock a work directory until this process ends, or release it if the body raises.

    The lock is `flock` on `workdir/.lock`. The file names the process and its host and is not
    deleted; its existence locks nothing. The system releases the lock when the process ends in any
    way. Child processes do not hold the lock: programs do not inherit the descriptor, and forks
    close it. The path that leads to the directory does not matter. A process may lock a directory
    again.

    `flock` works across hosts on NFS (Linux 2.6.12 and later) and on Lustre mounted with "flock".
    File systems with locks per host, such as gcsfuse, refuse only a second run of the same host. If
    the file system has no locks, a run is refused while the process that the file names is alive on
    this host, and a warning says that other hosts are not checked.

    Args:
      workdir: an existing directory.

    Raises:
      ValueError: another process has the lock; names it and its host. Nothing is changed.
      OSError: the file cannot be created or opened.
    """
    file, was_there = _lock(workdir)
    if file is None:  # this process has the lock already
        yield
        return
    before = os.pread(file, 4096, 0)
    try:
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(_this_process()).encode(), 0)
        yield
    except BaseException:
        if was_there:
            os.ftruncate(file, 0)
            os.pwrite(file, before, 0)
        else:
            (workdir / FILE).unlink(missing_ok=True)
        _held.pop(_identity(file))
        os.close(file)
        raise


def _lock(workdir: Path) -> tuple[int | None, bool]:
    """(descriptor of the locked file, None if this process had it; whether the file existed)."""
    path = workdir / FILE
    while True:
        was_there = path.exists()
        if was_there and _identity(path) in _held:
            return None, True
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _try(file, workdir)
            if path.exists() and _identity(path) == _identity(file):
                _held[_identity(file)] = file
                return file, was_there
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # the process that created the file has removed it in the meantime


def _try(file: int, workdir: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(_in_use(workdir, _owner(file))) from None
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        owner = _owner(file, patience=0.0)
        if owner and owner["host"] == socket.gethostname() and _lives(owner):
            raise ValueError(_in_use(workdir, owner)) from None
        _LOG.warning(
            "the file system of %s has no locks: a second run there is refused on this host only",
            workdir,
        )


def _in_use(workdir: Path, owner: dict | None) -> str:
    who = f"process {owner['pid']} on host {owner['host']}" if owner else "another process"
    return (
        f"workdir {workdir} is in use by {who}; wait until it has ended, or name another --workdir"
    )


def _owner(file: int, patience: float = 2.0) -> dict | None:
    """The process that the file names; waits briefly, since it may be about to write."""
    deadline = time.monotonic() + patience
    while True:
        try:
            owner = json.loads(os.pread(file, 4096, 0))
            return {"pid": int(owner["pid"]), "host": str(owner["host"]), "start": owner["start"]}
        except (ValueError, TypeError, KeyError):
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.05)


def _this_process() -> dict:
    return {"pid": os.getpid(), "host": socket.gethostname(), "start": _start(os.getpid())}


def _start(pid: int) -> str:
    """Start time of a process in the kernel's units, or "" if the system has none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[19]
    except (OSError, IndexError):
        return ""


def _lives(owner: dict) -> bool:
    """Whether the process that a lock file names is alive; another may have its id by now."""
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is alive and belongs to another user
    return owner["pid"] != os.getpid() and _start(owner["pid"]) == owner["start"]


def _identity(file: int | Path) -> tuple[int, int]:
    found = os.stat(file)
    return found.st_dev, found.st_ino


def _forget() -> None:
    """Closes the locks in a forked child, which would otherwise hold them after its parent ends."""
    for file in _held.values():
        os.close(file)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
