"""Rows of a data set from JSONL files, or from the hub; errors name the line."""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from dfpo_jax.published_files import refuse_pointer


class Entry(NamedTuple):
    """A row and its place, for error messages."""

    where: str
    row: Mapping[str, Any]


class Rows(NamedTuple):
    """Rows in order, and a digest that changes with any change of their source.

    The digest is the SHA-256 of the bytes of a file, or of the rows of a data set on the hub.
    """

    entries: list[Entry]
    digest: str


def is_file(source: str) -> bool:
    """Whether a name means a local file rather than an id on the hub."""
    path = pathlib.Path(source)
    return path.suffix in (".jsonl", ".json") or path.exists()


def read_jsonl(source: str) -> Rows:
    """The objects of a JSONL file; skips empty lines.

    Raises:
      ValueError: there is no such file, it is a git-lfs pointer, it is empty, or a line is not a
        JSON object or has a key twice; names the line.
    """
    path = pathlib.Path(source)
    if not path.is_file():
        raise ValueError(f"dataset {source!r} is not a file")
    refuse_pointer(path)
    entries, digest = [], hashlib.sha256()
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            digest.update(line)
            if not line.strip():
                continue
            where = f"{source}, line {number}"
            try:
                row = json.loads(line, object_pairs_hook=_object)
            except (ValueError, RecursionError) as error:  # JSON and UTF-8 errors are ValueErrors
                raise ValueError(f"{where} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{where} is {type(row).__name__}; it must be an object")
            entries.append(Entry(where, row))
    if not entries:
        raise ValueError(f"dataset {source!r} has no rows")
    return Rows(entries, digest.hexdigest())


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; refuses a repeated key, since Python would silently drop one value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(k for k in keys if keys.count(k) > 1)!r} occurs twice")
    return found


def read_hub(name: str, subset: str, split: str) -> Rows:
    """The rows of a split of a data set on the Hugging Face hub.

    Raises:
      ImportError: the package datasets is not installed; names the extra.
      ValueError: there is no such data set or split.
    """
    try:
        import datasets
    except ImportError:
        raise ImportError(
            f"dataset {name!r} is not a file, and reading the hub needs the package datasets: "
            "pip install 'dfpo-jax[data]'"
        ) from None
    try:
        rows = datasets.load_dataset(name, subset or None, split=split)
    except (FileNotFoundError, ValueError, ConnectionError) as error:
        raise ValueError(f"dataset {name!r} ({subset!r}, {split!r}): {error}") from error
    entries, digest = [], hashlib.sha256()
    for number, row in enumerate(rows):
        digest.update(json.dumps(row, sort_keys=True, default=_type_name).encode() + b"\n")
        entries.append(Entry(f"{name} {split}, row {number}", row))
    return Rows(entries, digest.hexdigest())


def _type_name(value: Any) -> str:
    """Represents an image or the like in a digest; its repr may contain a memory address."""
    return type(value).__name__
