"""Values of a row by column name, and the prompt that is filled with them."""

import math
import string
from collections.abc import Mapping
from typing import Any

from dfpo_jax.tasks.base import Item


def lookup(where: str, row: Any, name: str, namer: str = "") -> Any:
    """The value of a column, or a value nested in a column.

    "reward_model.ground_truth" is the column of exactly that name if there is one, else the value
    "ground_truth" of the object in the column "reward_model". "messages.0.content" takes an
    element of a list by its number; -1 is the last. "metadata[level]" means "metadata.level".

    Args:
      where: names the row in errors.
      row: its columns.
      name: name of the column.
      namer: the setting that names the column, for errors.

    Raises:
      ValueError: there is no such column; names the row, the column and the existing ones.
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
    """The value one level deeper, and the longest prefix of the dotted name that leads to it."""
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
    return f"is {_kind(value)} and contains nothing further"


def column(item: Item, name: str, namer: str) -> Any:
    """The value of a column of the row that an item was made of; see `lookup`.

    Args:
      item: a prompt of a JSONL file or of a data set on the hub; other tasks have no rows.
      name: name of the column.
      namer: the setting that names the column, for errors.

    Raises:
      ValueError: the item has no row, or its row no such column; names the prompt and the setting.
    """
    row = item.payload.get("row") if isinstance(item.payload, Mapping) else None
    if not isinstance(row, Mapping):
        raise ValueError(
            f"{namer} is {name!r}; prompt {item.prompt!r} has no columns, as it comes from no "
            "JSONL file and no data set on the hub"
        )
    return lookup(f"the row of prompt {item.prompt!r}", row, name, namer)


def text_of(where: str, value: Any) -> str:
    """A text, or a number as text; whole numbers have no fraction, so 28.0 is "28".

    Raises:
      ValueError: it is neither a text that UTF-8 can encode nor a finite number.
    """
    check_value(where, value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)


def check_value(where: str, value: Any) -> None:
    """Raise ValueError unless a value is a text that UTF-8 can encode or a finite number."""
    allowed = "it must be a text or a finite number"
    if isinstance(value, str):
        lone = next((c for c in value if "\ud800" <= c <= "\udfff"), None)
        if lone is not None:
            raise ValueError(f"{where} contains the lone surrogate {lone!r}; {allowed}")
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

    It accepts only texts and finite numbers, and refuses the reference answer.

    Args:
      text: the format string; {{ and }} mean braces.
      answers: names of columns with the reference answer.
    """

    def __init__(self, text: str, answers: tuple[str, ...] = ()):
        """`fill` checks each row."""
        self._text, self._answers, self._where = text, answers, ""

    def fill(self, where: str, row: Mapping[str, Any]) -> str:
        """The prompt of a row.

        Raises:
          ValueError: the text is not a format string, or a field is missing, is not a text or
            number, or is the reference answer; names the row.
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
                    f"prompt; write {{{{{name}}}}} to get the word in braces"
                )
        value = lookup(self._where, row, name, "task.prompt")
        check_value(f"{self._where}: column {name!r}, which task.prompt names,", value)
        return value, name

    def check_unused_args(self, used: Any, args: Any, row: Any) -> None:
        """Allows columns that the prompt does not name."""


def _same_field(name: str, answer: str) -> bool:
    def plain(text: str) -> str:
        return text.replace("]", "").replace("[", ".")

    return plain(name) == plain(answer)
