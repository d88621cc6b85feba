"""Checks that the files of a checkpoint have not changed since they were written."""

import json
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

MARK = "commit_success.txt"  # Orbax writes it last
_RECORD = "checksums.{}.json"
_BLOCK = 2**22
_read: dict[tuple, tuple] = {}  # what this process found intact -> times of its files


def record(directory: Path, step: int, index: int = 0, count: int = 1) -> None:
    """Write the sizes and CRC-32 of a complete checkpoint's files beside them, atomically.

    Each process of a run records its share of the files, so that no process reads all of them.

    Args:
      directory: the checkpoint's directory.
      step: its iteration.
      index: index of this process.
      count: number of processes.

    Raises:
      OSError: a file cannot be read or written.
    """
    names = _names(directory)
    files = {
        name: [(directory / name).stat().st_size, _crc(directory / name)]
        for name in names[index::count]
    }
    content = {"step": step, "of": count, "total": len(names), "files": files}
    path = directory / _RECORD.format(index)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def fault(directory: Path, step: int, index: int = 0, count: int = 1) -> str | None:
    """The fault of a checkpoint, or None; reads all of this process's share.

    Checksums may be missing, because earlier versions did not write them, or because the process
    was killed first. The arrays are then read and decoded, which finds unreadable files but not
    every changed byte. A checkpoint that this process found intact is not read again unless a file
    changed.

    Args:
      directory: the checkpoint's directory.
      step: its iteration.
      index: index of this process.
      count: number of processes.
    """
    key = directory, index, count
    try:
        files = _outline(directory, step)
        state = tuple((n, os.stat(directory / n).st_mtime_ns) for n in _names(directory))
        if _read.get(key) == state:
            return None
        if files is None:
            _read_arrays(directory, index, count)
        else:
            _compare(directory, {n: files[n][1] for n in sorted(files)[index::count]})
        _read[key] = state
    except Exception as error:  # for a damaged file the storage library may raise any type
        return _words(error, directory)
    return None


def _compare(directory: Path, sums: dict[str, int]) -> None:
    with ThreadPoolExecutor(8) as threads:
        found = threads.map(lambda name: _crc(directory / name), sums)
        for name, own in zip(sums, found, strict=True):
            if own != sums[name]:
                raise ValueError(f"{name} differs from what was written")


def _outline(directory: Path, step: int) -> dict[str, list[int]] | None:
    """Name -> recorded size and CRC-32, or None without a complete record.

    Raises:
      ValueError: the checkpoint has a fault; gives it.
    """
    if not directory.is_dir():
        raise ValueError("it is not a directory")
    if not any(directory.iterdir()):
        raise ValueError("it is empty")
    if not (directory / MARK).is_file():
        raise ValueError(f"{MARK} is missing; writing or copying was probably cut off")
    files = _recorded(directory, step)
    for name, (size, _) in (files or {}).items():
        path = directory / name
        if not path.is_file():
            raise ValueError(f"{name} is missing")
        if path.stat().st_size != size:
            raise ValueError(f"{name} has {path.stat().st_size} bytes; {size} were written")
    return files


def _recorded(directory: Path, step: int) -> dict[str, list[int]] | None:
    files, total, of = {}, None, None
    paths = sorted(directory.glob(_RECORD.format("*")))
    for path in paths:
        try:
            part = json.loads(path.read_bytes())
            files |= {name: [int(size), int(crc)] for name, (size, crc) in part["files"].items()}
            saved, of, total = part["step"], part["of"], part["total"]
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ValueError(f"{path.name} cannot be read") from None
        if saved != step:
            raise ValueError(f"it contains iteration {saved}")
    return files if paths and len(paths) == of and len(files) == total else None


def _read_arrays(directory: Path, index: int, count: int) -> None:
    import tensorstore  # comes with Orbax

    item = directory / "default"
    metadata = ["_CHECKPOINT_METADATA", "default/_METADATA"]
    described = (path.relative_to(directory) for path in item.glob("array_metadatas/*"))
    for name in [*metadata, "default/_sharding", "metrics/metrics", *map(str, described)]:
        if name in metadata or (directory / name).exists():
            try:
                json.loads((directory / name).read_bytes())
            except ValueError:
                raise ValueError(f"{name} is not JSON") from None
    saved = json.loads((item / "_METADATA").read_bytes())["tree_metadata"].values()
    wanted = sum(x["value_metadata"]["value_type"] == "jax.Array" for x in saved)
    store = {"driver": "ocdbt", "base": f"file://{item}/"}
    keys = [key.decode() for key in tensorstore.KvStore.open(store).result().list().result()]
    arrays = sorted(key.removesuffix("/.zarray") for key in keys if key.endswith("/.zarray"))
    if len(arrays) < wanted:
        raise ValueError(f"it contains {len(arrays)} of {wanted} arrays")
    for name in arrays[index::count]:
        spec = {"driver": "zarr", "kvstore": store | {"path": name}}
        tensorstore.open(spec, open=True).result().read().result()


def _names(directory: Path) -> list[str]:
    """The names of the checkpoint's files, without the record of checksums."""
    own = _RECORD.partition("{")[0]
    paths = (path for path in directory.rglob("*") if path.is_file())
    names = (path.relative_to(directory).as_posix() for path in paths)
    return sorted(name for name in names if not name.startswith(own))


def _crc(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            value = zlib.crc32(block, value)
    return value


def _words(error: Exception, directory: Path) -> str:
    """The error in one short line; the storage library's long messages are cut."""
    if isinstance(error, OSError) and error.filename:
        name = os.path.relpath(error.filename, directory)
        return f"{name} cannot be read: {error.strerror}"
    text = " ".join((str(error) or repr(error)).split()).split(" [tensorstore_spec=")[0]
    return text if len(text) <= 200 else text[:200] + "..."
