"""Files of one JSON object per line that survive crashes and full disks."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class JsonLines:
    """Appends rows that have a "step" to a file.

    Each row is a single write to the operating system, so a crash can break only the last line.

    Args:
      path: the file.
      resume_step: None to append to existing rows; n to drop rows with step > n first.

    Raises:
      ValueError: a line other than the last of an existing file is broken.
    """

    def __init__(self, path: Path, resume_step: int | None = None):
        """Open the file; drop a broken last line and rows beyond `resume_step`."""
        _trim(path, resume_step)
        self._file = open(path, "ab", buffering=0)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write a row.

        Raises:
          OSError: the row could not be written; any part of it is removed.
        """
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        start = self._file.seek(0, os.SEEK_END)
        try:
            while line:  # a full disk may write a part first and fail at the rest
                line = line[self._file.write(line) :]
        except OSError:
            self._file.truncate(start)
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file in order; skips a broken last line, which a crash may leave.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: another line is broken; the message names it.
    """
    lines, rows = path.read_bytes().split(b"\n"), []
    if not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or type(row.get("step")) is not int:
                raise ValueError("no JSON object with an integer step")
        except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number}: {error}") from error
        rows.append(row)
    return rows


def _trim(path: Path, resume_step: int | None) -> None:
    if not path.exists():
        return
    rows = read_rows(path)
    if resume_step is not None:
        rows = [row for row in rows if row["step"] <= resume_step]
    content = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode()
    if content == path.read_bytes():
        return
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
