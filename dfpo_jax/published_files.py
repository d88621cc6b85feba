"""Reading JSON and other files, with errors that name the file."""

import json
import os
import pathlib
from typing import Any

_POINTER = b"version https://git-lfs"


def is_pointer(path: str | os.PathLike) -> bool:
    """Whether a file is a git-lfs pointer: what git writes for a large file without git-lfs."""
    with open(path, "rb") as file:
        return file.read(len(_POINTER)) == _POINTER


def refuse_pointer(path: str | os.PathLike) -> None:
    """Raise if a file is a git-lfs pointer.

    Raises:
      ValueError: it is one; names the file and the command to run.
    """
    if is_pointer(path):
        raise ValueError(f"{path} is a git-lfs pointer, not the file itself; run git lfs pull")


def broken(path: str | os.PathLike, kind: str, error: BaseException) -> ValueError:
    """The error for a file that cannot be read as a `kind`, such as "JSON file"; names the file."""
    try:
        refuse_pointer(path)
    except ValueError as pointer:
        return pointer
    size = os.path.getsize(path)
    words = " ".join(str(error).split())
    return ValueError(f"{path} is not a {kind}, or is cut off ({size} bytes): {words}")


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      OSError: the file cannot be read; names it.
      ValueError: it is a git-lfs pointer, not JSON, cut off, or not an object; names it.
    """
    try:
        value = json.loads(pathlib.Path(path).read_bytes())
    except (ValueError, RecursionError) as error:  # JSON and UTF-8 errors are ValueErrors
        raise broken(path, "JSON file", error) from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} contains a {type(value).__name__}; it must be a JSON object")
    return value
