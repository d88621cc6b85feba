"""The dotted names of settings, and what to say about one that does not exist."""

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import Any

from ml_collections import ConfigDict

from dfpo_jax.training.moved_settings import ALSO, MOVED

_SIBLING, _ANYWHERE, _MOST = 0.7, 0.8, 3


def setting_paths(default: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of the fields of a dataclass, sections and what is in them."""
    for item in dataclasses.fields(default):
        yield prefix + item.name
        value = getattr(default, item.name)
        if dataclasses.is_dataclass(value):
            yield from setting_paths(value, f"{prefix}{item.name}.")


def nearest_settings(path: str, paths: list[str]) -> list[str]:
    """At most three settings that an unknown one may have meant; [] rather than a poor match.

    A key of the same section that is spelled alike, or else the keys of any section that have this
    name, or one spelled much alike, the nearest path first.
    """
    section, _, name = path.rpartition(".")
    by_name: dict[str, list[str]] = {}
    for known in paths:
        by_name.setdefault(known.rpartition(".")[2], []).append(known)
    siblings = [known for known in by_name if (f"{section}.{known}" if section else known) in paths]
    if found := difflib.get_close_matches(name, siblings, n=1, cutoff=_SIBLING):
        return [f"{section}.{found[0]}" if section else found[0]]
    if not (found := difflib.get_close_matches(name, by_name, n=1, cutoff=_ANYWHERE)):
        return []
    return difflib.get_close_matches(path, by_name[found[0]], n=_MOST, cutoff=0.0)


def moved_setting(path: str, value: Any, default: Any) -> str:
    """One sentence about a setting of an earlier version, or "" where `path` is none.

    Args:
      path: its dotted name, without "config." in front.
      value: its value; of a section, the first setting in it is named.
      default: the dataclass of the whole configuration.
    """
    if path in setting_paths(default):
        return ""
    if isinstance(value, Mapping | ConfigDict):
        for name in value:
            if sentence := moved_setting(f"{path}.{name}", value[name], default):
                return sentence
    section, _, name = path.rpartition(".")
    old, suffix = (path, "") if path in MOVED else (section, f".{name}")
    if old in MOVED:
        now = " or config.".join(x + suffix for x in (MOVED[old], *ALSO.get(old, ())))
        return f"config.{path} is of an earlier version; it is now config.{now}"
    inside = [new for old, new in MOVED.items() if old.startswith(f"{path}.")]
    sections = sorted({f"config.{new.partition('.')[0]}" for new in inside})
    where = ", ".join(sections)
    return (
        f"config.{path} is of an earlier version; its settings are now in {where}" if where else ""
    )


def unknown_setting(path: str, default: Any) -> str:
    """One sentence about a dotted name that is no setting, with what it may have meant.

    Args:
      path: the name, without "config." in front.
      default: the dataclass of the whole configuration.
    """
    if sentence := moved_setting(path, None, default):
        return sentence
    paths = list(setting_paths(default))
    for section in paths:
        if path.startswith(f"{section}.") and isinstance(attrgetter(section)(default), Mapping):
            name = path.removeprefix(f"{section}.")
            return (
                f"config.{path} is not in this configuration; give the section as a whole, "
                f"--config.{section}=\"{{'{name}': ...}}\""
            )
    near = [f"config.{known}" for known in nearest_settings(path, paths)]
    if not near:
        return f"config.{path} is not a setting, and none has a name like it"
    if len(near) == 1:
        return f"config.{path} is not a setting; the nearest is {near[0]}"
    return f"config.{path} is not a setting; the nearest are {', '.join(near)}"
