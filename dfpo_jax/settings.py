"""Sections of settings: ranges, choices, and parts that a section chooses by name."""

import dataclasses
import difflib
import importlib
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

_CHECKED: set[tuple] = set()  # parts of the user's own that kept their contract
OWN = "module:Class"  # how a part of the user's own is named


def check_interval(config: Any, *names: str, low: float, high: float = float("inf")) -> None:
    """Raise ValueError unless every named field of `config` lies in [low, high]."""
    for name in names:
        value = getattr(config, name)
        if not low <= value <= high:
            raise ValueError(f"{name} is {value}; it must lie in [{low:g}, {high:g}]")


def check_choice(config: Any, name: str, allowed: tuple[str, ...]) -> None:
    """Raise ValueError unless the named field of `config` is one of `allowed`."""
    value = getattr(config, name)
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")


def check_unread(config: Any, *names: str, because: str) -> None:
    """Raise ValueError where a field differs from its default though nothing reads it.

    Args:
      config: a dataclass whose fields have defaults.
      names: fields.
      because: why nothing reads them, the middle of the sentence.
    """
    for item in dataclasses.fields(config):
        made = item.default_factory is not dataclasses.MISSING
        default = item.default_factory() if made else item.default
        value = getattr(config, item.name)
        if item.name in names and value != default:
            raise ValueError(
                f"{item.name} is {value!r}; {because}, so it must be left at {default!r}"
            )


@dataclass(frozen=True)
class Choice:
    """A section that chooses one of several parts.

    A subclass has one field per part, whose value is the part's settings: a dataclass with `build`
    and, for what the part alone writes to metrics.jsonl, descriptions in the class variable
    `metrics` (see `dfpo_jax.metric`). Parts whose class says `added = True` are built beside the
    chosen one. All other fields are settings that the parts share.

    Attributes:
      name: the field of the part, or "my_package.my_module:MyPart": a dataclass with `build` in a
        module on PYTHONPATH.
      custom: the settings of that dataclass.

    Raises:
      ValueError: no part of that name, or one that cannot be loaded.
    """

    kind: ClassVar[str] = "part"
    name: str = ""
    custom: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        """Check the name, and load a part of the user's own."""
        if self.is_own:
            load_part(self.name, self.custom, self.kind)
            return
        if self.name not in self.parts:
            near = difflib.get_close_matches(self.name, self.parts, n=3, cutoff=0.4)
            nearest = f" (the nearest is {', '.join(near)})" if near else ""
            raise ValueError(
                f"name is {self.name!r}; it must be one of {', '.join(self.parts)}{nearest}, or "
                f"{OWN} of your own"
            )
        check_unread(self, "custom", because=f"name is {self.name!r}, not one of your own")

    @property
    def is_own(self) -> bool:
        """Whether the chosen part is one of the user's own."""
        return ":" in self.name

    @property
    def parts(self) -> dict[str, Any]:
        """The settings of every part that can be chosen, by name."""
        return {name: part for name, part in _parts(self) if not getattr(part, "added", False)}

    @property
    def added(self) -> dict[str, Any]:
        """The settings of every part that stands beside the chosen one, by name."""
        return {name: part for name, part in _parts(self) if getattr(part, "added", False)}

    @property
    def chosen(self) -> Any:
        """The settings of the chosen part."""
        if self.is_own:
            return load_part(self.name, self.custom, self.kind)
        return getattr(self, self.name)

    def build_chosen(self, check: Callable[[Any, str], None], *inputs: Any) -> Any:
        """The chosen part.

        Args:
          check: (part, name) -> None; raises ValueError where one of the user's own is wrong. It
            runs once in a process for the same settings and inputs.
          *inputs: of its `build`.
        """
        chosen = self.chosen
        if not self.is_own:
            return chosen.build(*inputs)
        part = call_custom(self.name, "build", lambda: chosen.build(*inputs))
        # The class itself: a notebook may load another one of the same name.
        case = (type(chosen), repr(self), inputs)
        if case not in _CHECKED:
            check(part, self.name)
            _CHECKED.add(case)
        return part


def _parts(section: Any) -> list[tuple[str, Any]]:
    values = [(item.name, getattr(section, item.name)) for item in dataclasses.fields(section)]
    return [(name, value) for name, value in values if hasattr(value, "build")]


def load_part(name: str, custom: Mapping[str, Any], kind: str) -> Any:
    """The settings of a part of the user's own.

    Args:
      name: "my_package.my_module:MyPart" of a dataclass with `build`.
      custom: values of its fields.
      kind: what it is, for messages.

    Raises:
      ValueError: there is no such class, or the values do not fit it; one line.
    """
    kind = f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
    if not re.fullmatch(r"[\w.]+:\w+", name):
        raise ValueError(f"name is {name!r}; {kind} of your own is named {OWN}")
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a user's module is arbitrary Python
        raise ValueError(f"name is {name!r}, which does not import: {_line(error)}") from error
    is_class = isinstance(found, type) and dataclasses.is_dataclass(found)
    if not is_class or not callable(getattr(found, "build", None)):
        raise ValueError(f"name is {name!r}; {kind} must be a dataclass with a method build")
    default = call_custom(name, "the class", found)
    return call_custom(name, "the class", lambda: parse_section(default, custom, "custom"))


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
        if isinstance(error, ValueError) and str(error).startswith((f"{name}: ", "custom.")):
            raise
        raise ValueError(f"{name}: {function} raised {_line(error)}") from error


def _line(error: Exception) -> str:
    """An exception's type and message on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def parse_section(default: Any, source: Mapping[str, Any], path: str, unknown: Any = None) -> Any:
    """A dataclass with the values of a mapping in place of its own.

    Args:
      default: gives the types, and the values of what is left out, at any depth.
      source: values by field name; nested mappings for nested dataclasses.
      path: dotted name of the section, for messages.
      unknown: (dotted name) -> sentence about a key that is no field.

    Raises:
      ValueError: an unknown key, a value of another type or one that the dataclass refuses.
    """
    hints = typing.get_type_hints(type(default))
    names = [item.name for item in dataclasses.fields(default)]
    values = {}
    for key in source:
        if key not in names:
            name = f"{path}.{key}"
            there = f"{name} is not a setting; {path} has {', '.join(names) or 'none'}"
            raise ValueError(unknown(name) if unknown else there)
        value = getattr(default, key)
        values[key] = _convert(hints[key], value, source[key], f"{path}.{key}", unknown)
    try:
        return dataclasses.replace(default, **values)
    except ValueError as error:
        # What is wrong with a part of the user's own begins with its name, not with a field's.
        joint = ": " if re.match(r"[\w.]+:\w+: ", str(error)) else "."
        raise ValueError(f"{path}{joint}{error}") from error


def _convert(hint: Any, default: Any, value: Any, path: str, unknown: Any) -> Any:
    if dataclasses.is_dataclass(hint) or typing.get_origin(hint) is Mapping:
        if not (isinstance(value, Mapping) or hasattr(value, "to_dict")):
            raise ValueError(f"{path} is {value!r}; it must be a section of settings")
        if dataclasses.is_dataclass(hint):
            return parse_section(default, value, path, unknown)
        return value.to_dict() if hasattr(value, "to_dict") else dict(value)
    fits, value = _fitted(hint, value)
    if not fits:
        name = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
        raise ValueError(
            f"{path} is {value!r} of type {type(value).__name__}; it must be of type {name}"
        )
    return value


def _fitted(hint: Any, value: Any) -> tuple[bool, Any]:
    """Whether a value is of an annotated type, and the value as that type."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True, value
    if hint is float and type(value) in (int, float):
        return True, float(value)
    if origin in (typing.Union, types.UnionType):
        found = [_fitted(kind, value) for kind in inner]
        return next((x for x in found if x[0]), (False, value))
    if origin is typing.Literal:
        return value in inner, value
    if origin is tuple and type(value) in (tuple, list):
        # Of tuples of other types, the sections themselves check what is in them.
        floats = inner[:1] == (float,) and all(type(x) in (int, float) for x in value)
        return inner[:1] != (float,) or floats, tuple(map(float, value)) if floats else tuple(value)
    if origin is dict and hasattr(value, "to_dict"):
        value = value.to_dict()
    return type(value) is (origin or hint), value
