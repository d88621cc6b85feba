"""Rows of a data set: JSONL files, or the hub by the package datasets; errors name the line."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple


class Entry(NamedTuple):
    """A row and where it stands, for error messages."""

    where: str
    row: Mapping[str, Any]


def is_file(source: str) -> bool:
    """Whether a name means a file here rather than an id on the hub."""
    path = pathlib.Path(source)
    return path.suffix in (".jsonl", ".json") or path.exists()


def read_jsonl(source: str) -> list[Entry]:
    """The objects of a JSONL file; empty lines are passed over.

    Raises:
      ValueError: there is no such file, it is empty, or a line is no JSON object; names the line.
    """
    path = pathlib.Path(source)
    if not path.is_file():
        raise ValueError(f"dataset {source!r} is no file")
    entries = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{source}, line {number}"
            try:
                row = json.loads(line)
            except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
                raise ValueError(f"{where} is no JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{where} is {type(row).__name__}; it must be an object")
            entries.append(Entry(where, row))
    if not entries:
        raise ValueError(f"dataset {source!r} has no rows")
    return entries


def read_hub(name: str, subset: str, split: str) -> list[Entry]:
    """The rows of a split of a data set on the Hugging Face hub.

    Raises:
      ImportError: the package datasets is not installed; names the extra.
      ValueError: the data set or split is not there.
    """
    try:
        import datasets
    except ImportError:
        raise ImportError(
            f"dataset {name!r} is no file, and to read the hub the package datasets is missing: "
            "pip install 'dfpo-jax[data]'"
        ) from None
    try:
        rows = datasets.load_dataset(name, subset or None, split=split)
    except (FileNotFoundError, ValueError, ConnectionError) as error:
        raise ValueError(f"dataset {name!r} ({subset!r}, {split!r}): {error}") from error
    return [Entry(f"{name} {split}, row {i}", row) for i, row in enumerate(rows)]
