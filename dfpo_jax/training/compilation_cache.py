"""Where programs keep what XLA compiled, so that their next start need not compile it again.

JAX names an entry by a hash of the program, the compiler's options, jaxlib's version and the
device; on a CPU also by its instruction sets, so hosts that share a home directory do not mix up
theirs. Entries have a checksum: a process that finds one half-written, because another is writing
it or was killed over it, warns and compiles the program. Removing the directory loses only time.
"""

import contextlib
import logging
import os
import tempfile

import jax

_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
_ENABLED = "JAX_ENABLE_COMPILATION_CACHE"
# JAX's default of 1 s leaves out many programs that together take seconds.
_SHORTEST, _SECONDS = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", 0.1
_LIMIT = 2 * 2**30
_logger = logging.getLogger(__name__)


def default_directory() -> str:
    """The folder dfpo_jax in $XDG_CACHE_HOME, or in ~/.cache where that is no absolute path."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        base = os.path.expanduser("~/.cache")
    return os.path.join(base, "dfpo_jax")


def set_up(named: str | None) -> None:
    """Keep compiled programs in a directory, from now on and in processes that this one starts.

    A directory that the user names is used as it is. That by default is cut down to 2 GiB first;
    processes that this one starts choose their own.

    Args:
      named: a directory or the URL of one, "" to keep nothing, None for JAX's own setting
        (JAX_COMPILATION_CACHE_DIR), or the default directory if there is none.
    """
    if named == "":
        os.environ[_ENABLED] = "false"
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if named is None and jax.config.jax_compilation_cache_dir is not None:
        return
    if named is None and not jax.config.jax_enable_compilation_cache:
        return
    directory = default_directory() if named is None else named
    if "://" not in directory:
        directory = os.path.abspath(os.path.expanduser(directory))
        if not _can_write(directory):
            jax.config.update("jax_compilation_cache_dir", None)
            return
    if named is None:
        with contextlib.suppress(OSError):  # it cannot be listed
            _shrink(directory, _LIMIT)
    else:
        os.environ.update({_VARIABLE: directory, _ENABLED: "true"})
    jax.config.update("jax_compilation_cache_dir", directory)
    jax.config.update("jax_enable_compilation_cache", True)
    if _SHORTEST not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _SECONDS)


def leave_default() -> None:
    """Keep nothing in the default directory: for runs of several processes.

    JAX writes entries from the first process alone. On hosts that do not share the directory, only
    that one would find them, and would not be there when the others tune GPU kernels together.
    """
    default = jax.config.jax_compilation_cache_dir == os.path.abspath(default_directory())
    if default and _VARIABLE not in os.environ:
        jax.config.update("jax_compilation_cache_dir", None)


def _can_write(directory: str) -> bool:
    """Make the directory, for its owner alone, since its entries are run; warn if that fails."""
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return True
    except OSError as error:
        _logger.warning(
            "compiled programs are not kept, as %s cannot be written (%s); "
            "--compilation_cache names another directory",
            directory,
            error.strerror,
        )
        return False


def _shrink(directory: str, limit: int) -> None:
    """Remove the entries unused for longest until at most `limit` bytes are left.

    JAX has a limit of its own. In 0.10 it fails for good after one process without it, or one that
    was killed while it wrote.
    """
    entries = []
    for file in os.scandir(directory):
        with contextlib.suppress(OSError):  # another process may be doing the same
            if file.name.endswith("-cache"):
                found = file.stat()
                entries.append((max(found.st_atime, found.st_mtime), found.st_size, file.path))
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= limit:
            return
        with contextlib.suppress(OSError):
            os.remove(path)
        total -= size
