"""A `ConfigDict` that knows which settings were assigned, so that a preset replaces no other."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter
from typing import Any

from ml_collections import ConfigDict

_MEMORY = ("_assigned", "_flagged", "_presets", "_defaults", "_unknown")


class Settings(ConfigDict):
    """All settings of a run, as a configuration file changes them.

    An assignment counts also where it repeats the default. Assigning `algorithm` gives all settings
    that were not assigned the values of that preset, or else their defaults. Copies remember what
    was assigned before they were made.
    """

    def __init__(self, values: Mapping[str, Any] | None = None, type_safe: bool = True, **options):
        """A section that remembers nothing; see `of`."""
        object.__setattr__(self, "_root", None)
        super().__init__(values, type_safe, **options)

    @classmethod
    def of(
        cls,
        default: Any,
        presets: Mapping[str, Mapping[str, Any]],
        unknown: Callable[[str], str],
    ) -> "Settings":
        """The settings of a dataclass and of all dataclasses in it, under its `algorithm`'s preset.

        Args:
          default: the dataclass, with its defaults.
          presets: name -> settings by dotted name.
          unknown: (dotted name) -> a sentence about a setting that does not exist.
        """
        root = cls()
        for name, value in zip(_MEMORY, (set(), None, presets, default, unknown), strict=True):
            object.__setattr__(root, name, value)
        _fill(root, default, root, "")
        root._apply_preset()
        return root

    def copy_and_resolve_references(self, visit_map: Any = None) -> "Settings":
        """A copy of all settings remembers what was assigned; one of a section remembers nothing.

        Args:
          visit_map: see `ConfigDict`.
        """
        copied = super().copy_and_resolve_references(visit_map)
        if self._root is self:
            for name in _MEMORY:
                value = getattr(self, name)
                object.__setattr__(copied, name, set(value) if isinstance(value, set) else value)
            _link(copied, copied, "")
        return copied

    __copy__ = copy_and_resolve_references

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """What `copy.deepcopy` and `pickle` made, with all that it remembers."""
        super().__setstate__(state)
        for name in ("_root", "_path", *_MEMORY):
            if name in state:
                object.__setattr__(self, name, state[name])

    @property
    def flagged(self) -> frozenset[str]:
        """Dotted names of what was assigned since `begin_flags`."""
        return frozenset(self._flagged or ())

    def begin_flags(self) -> None:
        """From now on, what is assigned comes from a command line."""
        object.__setattr__(self, "_flagged", set())

    def __getattr__(self, key: str) -> Any:
        """A setting or a section.

        Raises:
          AttributeError: there is none of that name; says which it may have meant.
        """
        try:
            return super().__getattr__(key)
        except AttributeError:
            if key.startswith("_") or self._root is None:
                raise
            raise AttributeError(self._root._unknown(self._path + key)) from None

    def __setitem__(self, key: str, value: Any) -> None:
        """Assign a setting, or a section as a whole."""
        if self._root is None:
            super().__setitem__(key, value)
            return
        old, path = self._fields.get(key), self._path + key
        root = self._root
        # ml_collections makes dictionaries, which are settings themselves, of this class too.
        is_section = isinstance(old, Settings) and old._root is root
        whole = is_section and isinstance(value, Mapping | ConfigDict)
        if whole:  # what the new section leaves out has its default again
            section = self._fields[key] = Settings()
            _fill(section, attrgetter(path)(root._defaults), root, f"{path}.")
            names = list(_put(section, value, f"{path}."))
            inside = {name for name in root._assigned if name.startswith(f"{path}.")}
            root._assigned.difference_update(inside)
        else:
            super().__setitem__(key, value)
            names = [path]
        root._assigned.update(names)
        if root._flagged is not None:
            root._flagged.update(names)
        if whole or path == "algorithm":
            root._apply_preset()

    def _apply_preset(self) -> None:
        chosen = self._presets.get(self._fields["algorithm"], {})
        names = {name for preset in self._presets.values() for name in preset}
        for name in names - self._assigned:
            *sections, key = name.split(".")
            section, default = self, self._defaults
            for part in sections:
                section, default = section._fields[part], getattr(default, part)
            section._fields[key] = chosen.get(name, getattr(default, key))


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings from dotted names."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *sections, name = path.split(".")
        section = tree
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = value
    return tree


def _fill(section: Settings, default: Any, root: Settings, path: str) -> None:
    for item in dataclasses.fields(default):
        value = getattr(default, item.name)
        if dataclasses.is_dataclass(value):
            child = Settings()
            _fill(child, value, root, f"{path}{item.name}.")
            value = child
        section[item.name] = value
    object.__setattr__(section, "_path", path)
    object.__setattr__(section, "_root", root)


def _link(section: Settings, root: Settings, path: str) -> None:
    """Makes a section remember, and all sections in it."""
    default = attrgetter(path[:-1])(root._defaults) if path else root._defaults
    for key, value in section._fields.items():
        if isinstance(value, Settings) and dataclasses.is_dataclass(getattr(default, key, None)):
            _link(value, root, f"{path}{key}.")
    object.__setattr__(section, "_path", path)
    object.__setattr__(section, "_root", root)


def _put(section: Settings, values: Mapping[str, Any], path: str) -> Iterator[str]:
    """Puts values into a section, and says the dotted names of those that it put there."""
    for key, value in values.items():
        child, is_mapping = section._fields.get(key), isinstance(value, Mapping | ConfigDict)
        if isinstance(child, Settings) and is_mapping:
            yield from _put(child, value, f"{path}{key}.")
        else:
            section._fields[key] = ConfigDict(value) if is_mapping else value
            yield path + key
