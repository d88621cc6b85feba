"""One run a directory: a lock that the operating system takes back when its process ends."""

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
    """Lock a work directory until this process ends, or give it back where the body raises.

    The lock is `flock` on `workdir/.lock`. The file names the process and its host and stays
    behind; it locks nothing by itself. The system releases the lock with the process, however that
    ends. Child processes do not hold it: programs they start do not inherit the descriptor, and
    forks close it. A directory is locked whatever path leads to it. A process that has locked a
    directory may lock it again.

    `flock` reaches the processes of all hosts on NFS (Linux 2.6.12 and later) and on Lustre mounted
    with "flock". File systems that keep locks on the host, gcsfuse among them, refuse a second run
    of the same host only. Where locks are not supported at all, a run is refused while the process
    that the file names lives on this host, and a warning says that no other host is seen.

    Args:
      workdir: an existing directory.

    Raises:
      ValueError: another process has the lock; names it and its host. Nothing is changed then.
      OSError: the file cannot be made or opened.
    """
    file, was_there = _lock(workdir)
    if file is None:  # this process has it already
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
    """The descriptor of the locked file, None if this process had it; whether the file existed."""
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
        os.close(file)  # the process that made the file gave it back and removed it meanwhile


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
    """Who the file names; waits a little for a process that has just locked it to write."""
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
    """When a process began, in the kernel's units; "" where the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[19]
    except (OSError, IndexError):
        return ""


def _lives(owner: dict) -> bool:
    """Whether the process that a lock file names is there; another may have got its number."""
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is there, and someone else's
    return owner["pid"] != os.getpid() and _start(owner["pid"]) == owner["start"]


def _identity(file: int | Path) -> tuple[int, int]:
    found = os.stat(file)
    return found.st_dev, found.st_ino


def _forget() -> None:
    """In a forked child: it would hold the lock after its parent's death."""
    for file in _held.values():
        os.close(file)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
