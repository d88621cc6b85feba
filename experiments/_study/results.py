"""results.jsonl: a row per finished cell."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from _study.grid import COORDINATES, Cell, Study
from _study.summary import best_setting

TIMES = ("seconds", "cpu_seconds")
_ORIGIN = (*TIMES, "dfpo_jax", "jax", "commit")  # what a repeated cell may have otherwise
_NEEDED = {*COORDINATES, "cell", "in", "sampled", "seconds"}


class Found(NamedTuple):
    """Rows against the cells of a study.

    Attributes:
      rows: hash of a cell -> its row.
      stale: rows of cells of this study that were run with other settings.
    """

    rows: dict[str, dict[str, Any]]
    stale: list[dict[str, Any]]


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; none where there is no file. A broken last line, from a crash, is none.

    Raises:
      ValueError: another line is broken; names it.
    """
    if not path.exists():
        return []
    lines, rows = path.read_bytes().split(b"\n"), []
    lines.pop()  # b"" behind a whole line
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        if not isinstance(row, dict) or not _NEEDED <= row.keys():
            missing = ", ".join(sorted(_NEEDED - set(row if isinstance(row, dict) else ())))
            raise ValueError(f"{path}, line {number}: no row of a study, without {missing}")
        rows.append(row)
    return rows


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Add a row; it is on the disk when this returns. A broken last line goes first.

    Raises:
      OSError: it could not be written; the file is as before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(row, allow_nan=False, separators=(",", ":")).encode() + b"\n"
    with open(path, "a+b", buffering=0) as file:
        file.seek(0)
        end = file.read().rfind(b"\n") + 1
        file.truncate(end)
        try:
            while line:
                line = line[file.write(line) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise


def match(cells: Sequence[Cell], rows: Sequence[Mapping[str, Any]]) -> Found:
    """Which rows are those of cells as they are now; of several of one cell, the last."""
    wanted = {_place(cell.coordinates): cell.hash for cell in cells}
    found, stale = {}, []
    for row in rows:
        hash = wanted.get(_place(row))
        if hash is not None and row["cell"] == hash:
            found[hash] = dict(row)
        elif hash is not None:
            stale.append(dict(row))
    return Found(found, stale)


def newest(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The last row of every cell."""
    return list({_place(row): dict(row) for row in rows}.values())


def _place(row: Mapping[str, Any]) -> tuple:
    return tuple(row[name] for name in COORDINATES)


def differences(row: Mapping[str, Any], again: Mapping[str, Any]) -> list[str]:
    """What a repeated cell has otherwise, but for its times and versions."""
    names = dict.fromkeys((*row, *again))
    return [
        f"{name}: {row.get(name)!r} -> {again.get(name)!r}"
        for name in names
        if name not in _ORIGIN and row.get(name) != again.get(name)
    ]


def choose(
    study: Study, algorithm: str, family: str, rows: Mapping[str, Mapping[str, Any]]
) -> str | None:
    """The setting of the sweep whose training responses were right most often, without noise.

    It looks at training figures alone, so that held-out accuracies choose nothing. None until all
    cells without noise of the algorithm are there. A single setting need not be chosen.
    """
    if len(study.sweep) == 1:
        return next(iter(study.sweep))
    scores: dict[str, list[float]] = {}
    for cell in study.sweep_cells(algorithm, family):
        if cell.hash not in rows:
            return None
        scores.setdefault(cell.setting, []).append(rows[cell.hash]["sampled"][1])
    return best_setting(scores)
