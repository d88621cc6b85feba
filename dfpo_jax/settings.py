"""Checks that sections of settings share, and parts that a user brings along."""

import dataclasses
import importlib
import re
from collections.abc import Callable, Mapping
from typing import Any


def check_interval(config: Any, *names: str, low: float, high: float = float("inf")) -> None:
    """Raise ValueError unless every named field of `config` lies in [low, high]."""
    for name in names:
        value = getattr(config, name)
        if not low <= value <= high:
            raise ValueError(f"{name} is {value}; it must lie in [{low:g}, {high:g}]")


def check_unread(config: Any, *names: str, because: str) -> None:
    """Raise ValueError unless every named field of `config`, which nothing reads, has its default.

    Args:
      config: a dataclass.
      names: of fields with a default.
      because: why nothing reads them, such as "nothing reads it while probability is 0".
    """
    for field in dataclasses.fields(config):
        if field.name not in names:
            continue
        made = field.default_factory is not dataclasses.MISSING
        default = field.default_factory() if made else field.default
        value = getattr(config, field.name)
        if value != default:
            raise ValueError(
                f"{field.name} is {value!r}; {because}, so it must be left at {default!r}"
            )


def load_part(name: str, custom: Mapping[str, Any], kind: str) -> Any:
    """The settings of a part of the user's own.

    Args:
      name: "module:Class" of a dataclass with a method `build`.
      custom: values of its fields.
      kind: the section that names it, such as "rewards".

    Raises:
      ValueError: there is no such class, or the values do not fit it; one line.
    """
    where = f"{kind}.name is {name!r}"
    if not re.fullmatch(r"[\w.]+:\w+", name):
        raise ValueError(f"{where}; a part of your own is named module:Class")
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        raise ValueError(f"{where}, which does not import: {_line(error)}") from error
    is_class = isinstance(found, type) and dataclasses.is_dataclass(found)
    if not is_class or not callable(getattr(found, "build", None)):
        raise ValueError(f"{where}; it must be a dataclass with a method build")
    known = [field.name for field in dataclasses.fields(found) if field.init]
    for key in custom:
        if key not in known:
            fields = ", ".join(known) or "none"
            raise ValueError(f"{kind}.custom.{key} is not a setting of {name}; it has {fields}")
    try:
        return found(**custom)
    except Exception as error:
        raise ValueError(f"{kind}.custom does not fit {name}: {_line(error)}") from error


def call_custom(name: str, function: str, call: Callable[[], Any]) -> Any:
    """The result of a function of a part of the user's own.

    Args:
      name: of the part, "module:Class".
      function: name of the function, for the message.
      call: calls it.

    Raises:
      ValueError: whatever the function raised, as one line that names the part and the function. A
        ValueError that already begins with the part's name passes as it is.
    """
    try:
        return call()
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(f"{name}: "):
            raise
        raise ValueError(f"{name}: {function} raised {_line(error)}") from error


def _line(error: Exception) -> str:
    """An exception's type and message on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
