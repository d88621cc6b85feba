"""Values of a row by the name of their column, and the prompt they are put in."""

import math
import string
from collections.abc import Mapping
from typing import Any


def lookup(where: str, row: Any, name: str, namer: str = "") -> Any:
    """The value of a column, or of one that lies inside others.

    "reward_model.ground_truth" is the column of that very name where there is one, else the value
    "ground_truth" of the object in the column "reward_model". "messages.0.content" takes a place
    of a list by its number; -1 is the last. "metadata[level]" means "metadata.level".

    Args:
      where: names the row in errors.
      row: its columns.
      name: of the column.
      namer: what names the column, for errors too.

    Raises:
      ValueError: there is none; names the row, the name and what there is instead.
    """
    value, found = row, ""
    parts = name.replace("]", "").replace("[", ".") if "[" in name and name not in row else name
    while parts:
        step = _step(value, parts)
        if step is None:
            has = f"{found!r} of it" if found else "it"
            which = f", which {namer} names" if namer else ""
            raise ValueError(f"{where} has no {name!r}{which}; {has} {_contents(value)}")
        value, used = step
        found = f"{found}.{used}".lstrip(".")
        parts = parts[len(used) + 1 :]
    return value


def _step(value: Any, parts: str) -> tuple[Any, str] | None:
    """One value further in, and the longest beginning of a dotted name that leads there."""
    if isinstance(value, Mapping):
        pieces = parts.split(".")
        for count in range(len(pieces), 0, -1):
            key = ".".join(pieces[:count])
            if key in value:
                return value[key], key
    elif isinstance(value, list):
        first = parts.partition(".")[0]
        digits = first.removeprefix("-")
        if digits.isascii() and digits.isdigit() and -len(value) <= int(first) < len(value):
            return value[int(first)], first
    return None


def _contents(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"has {', '.join(map(str, value)) or 'nothing'}"
    if isinstance(value, list):
        return f"is a list of {len(value)}"
    return f"is {_kind(value)} and holds nothing further"


def text_of(where: str, value: Any) -> str:
    """A text, or a number as text; whole numbers have no fraction: 28.0 is "28".

    Raises:
      ValueError: it is neither a text that UTF-8 can hold nor a finite number.
    """
    check_value(where, value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)


def check_value(where: str, value: Any) -> None:
    """Raise ValueError unless a value is a text that UTF-8 can hold or a finite number."""
    allowed = "it must hold a text or a finite number"
    if isinstance(value, str):
        lone = next((c for c in value if "\ud800" <= c <= "\udfff"), None)
        if lone is not None:
            raise ValueError(f"{where} holds the lone surrogate {lone!r}; {allowed}")
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{where} is {_kind(value)}; {allowed}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}; {allowed}")


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    shown = repr(value)
    names = {list: "the list", dict: "the object", str: "the text", bool: "the truth value"}
    name = names.get(type(value), f"the {type(value).__name__}")
    return f"{name} {shown if len(shown) <= 60 else shown[:57] + '...'}"


class Prompt(string.Formatter):
    """A format string over a row, such as "{question}" or "{messages.0.content}".

    Only texts and finite numbers are put in, and never the reference answer.

    Args:
      text: the format string; {{ and }} stand for braces.
      answers: names of columns that hold the reference answer.
    """

    def __init__(self, text: str, answers: tuple[str, ...] = ()):
        """Keep both; each row is checked when it is put in."""
        self._text, self._answers, self._where = text, answers, ""

    def fill(self, where: str, row: Mapping[str, Any]) -> str:
        """The prompt of a row.

        Raises:
          ValueError: no format string, or a field that is not there, is no text or number, or
            holds the reference answer; names the row.
        """
        self._where = where
        try:
            return self.vformat(self._text, (), row)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            if str(error).startswith(where):
                raise
            raise ValueError(f"{where}: prompt={self._text!r} does not fit: {error}") from error

    def get_field(self, name: Any, args: Any, row: Mapping[str, Any]) -> tuple[Any, str]:
        """A field's value for `string.Formatter`; its errors name the row and task.prompt."""
        name = str(name)
        if name.isdigit() and name not in row:
            raise ValueError("a field needs a name; write {{}} for braces")
        for answer in self._answers:
            if _same_field(name, answer):
                raise ValueError(
                    f"{self._where}: task.prompt puts {answer!r}, the reference answer, into the "
                    f"prompt; write {{{{{name}}}}} where the word in braces is meant"
                )
        value = lookup(self._where, row, name, "task.prompt")
        check_value(f"{self._where}: column {name!r}, which task.prompt names,", value)
        return value, name

    def check_unused_args(self, used: Any, args: Any, row: Any) -> None:
        """A row has columns that no prompt names."""


def _same_field(name: str, answer: str) -> bool:
    def plain(text: str) -> str:
        return text.replace("]", "").replace("[", ".")

    return plain(name) == plain(answer)
