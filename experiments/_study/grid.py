"""The cells of a study: every algorithm under every kind of noise, at every level and seed.

A study configuration is a `ConfigDict` with these keys; overrides are nested settings of a run.

- `run`: the base run, from `default_config()`. Its warm start is made once for each seed; without
  one, cells start from the published weights that `run.weights.source` names.
- `seeds`: integers; each is the run's seed and its task's.
- `sweep`: section -> setting -> values. Every algorithm is tried with each combination, without
  noise, and goes on with the one whose responses were right most often at the end of training.
- `families`: name -> overrides that make the clean rewards.
- `noise`: name -> `family`, increasing `levels` above 0, and `settings`: overrides, in which the
  texts "level", "1 - level" and "seed" stand for numbers.
- `algorithms`: name -> overrides; `reference` is the one that the others are compared with.
- `more.algorithms`, at `more.cells` (kind of noise -> levels) alone.
- `cell_seconds`: for `--list`, before any cell has been timed; 60 if left out.
- `ablation`: `base`, overrides under each of `ablation.algorithms`, `cells` and `reference`;
  it may have a `sweep` of its own, and `clean`: False runs it with noise alone, if its sweep has
  one setting.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ml_collections import ConfigDict

from dfpo_jax.settings import Choice
from dfpo_jax.training.config import Config, parse_config
from dfpo_jax.training.config_diff import flatten

CLEAN = "clean"
GUESS = 60.0  # seconds of a cell
COORDINATES = ("family", "algorithm", "setting", "noise", "level", "seed")
# All cells of a seed start as the base run does.
_SHARED = ("seed", "model", "weights", "warm_start", "tokenizer", "mesh")


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
      family, algorithm, noise: names of the study; `noise` may be "clean".
      setting: the values of the sweep, as text.
      level: of the noise; 0.0 without noise.
      seed: of everything random.
      changes: dotted settings that differ from the base run.
      config: the whole run, with the base run's own warm start.
    """

    family: str
    algorithm: str
    setting: str
    noise: str
    level: float
    seed: int
    changes: Mapping[str, Any]
    config: Config

    @property
    def coordinates(self) -> dict[str, Any]:
        """What a row is found by."""
        return {name: getattr(self, name) for name in COORDINATES}

    @property
    def name(self) -> str:
        """For people."""
        return " ".join(str(value) for value in self.coordinates.values())

    @functools.cached_property
    def hash(self) -> str:
        """Of all settings that the run reads; see `config_hash`."""
        return config_hash(self.config)


_ROUNDING = ("sampling.wide_rows",)


def config_hash(config: Config) -> str:
    """12 hexadecimal digits, of the settings that are not the defaults of their parts.

    Those of parts that are not chosen are left out, so that neither a new part nor a new setting
    changes the hashes of runs that do not use it, and so is what changes rounding alone. What a
    hash cannot see, a default that has changed or other code, `--check` does. A file counts by what
    it holds, not by where it lies.
    """
    read, default = dataclasses.asdict(config), flatten(dataclasses.asdict(Config()))
    for name in (item.name for item in dataclasses.fields(config)):
        section = getattr(config, name)
        if isinstance(section, Choice):
            for part in section.parts.keys() - {section.name}:
                del read[name][part]
    for path in _ROUNDING:
        section, name = path.split(".")
        del read[section][name]
    chosen = {path: value for path, value in flatten(read).items() if value != default.get(path)}
    text = json.dumps(_by_content(chosen), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _by_content(value: Any) -> Any:
    """Nested settings, with a digest of the file in place of its absolute path."""
    if isinstance(value, Mapping):
        return {str(key): _by_content(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_by_content(item) for item in value]
    if isinstance(value, str) and os.path.isabs(value) and os.path.isfile(value):
        return _file_digest(value)
    return value


@functools.cache
def _file_digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Study:
    """A grid.

    Attributes:
      source: the study configuration.
      algorithms: name -> overrides.
      places: algorithm -> (kind of noise, level) at which it is run, beside those without noise.
      reference: the algorithm that others are compared with.
      sweep: setting, as text -> overrides by dotted name.
      clean: whether cells without noise are run.
    """

    source: ConfigDict
    algorithms: Mapping[str, Mapping[str, Any]]
    places: Mapping[str, Sequence[tuple[str, float]]]
    reference: str
    sweep: Mapping[str, Mapping[str, Any]]
    clean: bool = True
    _made: dict[tuple, Cell] = field(default_factory=dict, repr=False)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds."""
        return tuple(self.source.seeds)

    @property
    def cell_seconds(self) -> float:
        """Seconds of a cell, before any has been timed."""
        return float(self.source.get("cell_seconds", GUESS))

    def families(self, algorithm: str) -> list[str]:
        """The families of rewards in which an algorithm is run."""
        kinds = dict.fromkeys(self.source.noise[kind].family for kind, _ in self.places[algorithm])
        return list(kinds)

    def sweep_cells(self, algorithm: str, family: str) -> list[Cell]:
        """The cells without noise, of all settings and seeds."""
        return [
            self.cell(family, algorithm, setting, CLEAN, 0.0, seed)
            for setting in (self.sweep if self.clean else ())
            for seed in self.seeds
        ]

    def noisy_cells(self, algorithm: str, family: str, setting: str) -> list[Cell]:
        """The cells with noise of one setting; of the first, where it is not chosen yet."""
        return [
            self.cell(family, algorithm, setting, kind, level, seed)
            for kind, level in self.places[algorithm]
            if self.source.noise[kind].family == family
            for seed in self.seeds
        ]

    def base(self, seed: int) -> ConfigDict:
        """The base run of a seed; all cells of it start as it does."""
        run = self.source.run.copy_and_resolve_references()
        run.seed = run.task.seed = seed
        return run

    def cell(
        self, family: str, algorithm: str, setting: str, noise: str, level: float, seed: int
    ) -> Cell:
        """One cell.

        Raises:
          ValueError: the settings are wrong, or change what all cells share; names the cell.
        """
        place = (family, algorithm, setting, noise, level, seed)
        if place not in self._made:
            self._made[place] = self._make(*place)
        return self._made[place]

    def _make(
        self, family: str, algorithm: str, setting: str, noise: str, level: float, seed: int
    ) -> Cell:
        # First the algorithm, whose preset replaces only what nothing else has set.
        changes = dict(sorted(self._changes(algorithm).items(), key=lambda x: x[0] != "algorithm"))
        changes |= flatten(_plain(self.source.families[family])) | self.sweep[setting]
        if noise != CLEAN:
            values = {"level": level, "1 - level": round(1.0 - level, 12), "seed": seed}
            for path, value in flatten(_plain(self.source.noise[noise].settings)).items():
                changes[path] = values.get(value, value) if isinstance(value, str) else value
        where = f"{family} {algorithm} {setting} {noise} {level:g} {seed}"
        run = self.base(seed)
        try:
            for path, value in changes.items():
                if path.partition(".")[0] in _SHARED:
                    raise ValueError(f"config.{path} is the same in all cells of a seed")
                _put(run, path, value)
            config = parse_config(run)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            words = error.args[0] if error.args else error
            raise ValueError(f"cell {where}: {words}") from error
        return Cell(family, algorithm, setting, noise, level, seed, changes, config)

    def _changes(self, algorithm: str) -> dict[str, Any]:
        return flatten(_plain(self.algorithms[algorithm]))


def comparison(source: ConfigDict) -> Study:
    """The study of `compare.py`.

    Raises:
      ValueError: a section is missing or wrong.
    """
    _check(source)
    everywhere = [(kind, float(x)) for kind, part in source.noise.items() for x in part.levels]
    algorithms = _tables(source.algorithms)
    places = {name: everywhere for name in algorithms}
    if "more" in source:
        more = _tables(source.more.algorithms)
        if twice := algorithms.keys() & more.keys():
            raise ValueError(f"config.more.algorithms repeats {', '.join(sorted(twice))}")
        algorithms |= more
        places |= {name: _chosen(source, "more") for name in more}
    return _checked(Study(source, algorithms, places, source.reference, _sweep(source.sweep)))


def ablation(source: ConfigDict) -> Study:
    """The study of `ablate.py`.

    Raises:
      ValueError: a section is missing or wrong.
    """
    _check(source)
    if "ablation" not in source:
        raise ValueError("config.ablation is missing")
    base = flatten(_plain(source.ablation.base))
    algorithms = {}
    for name, overrides in _tables(source.ablation.algorithms).items():
        algorithms[name] = base | flatten(overrides)
    places = {name: _chosen(source, "ablation") for name in algorithms}
    sweep = _sweep(source.ablation.get("sweep", source.sweep))
    clean = bool(source.ablation.get("clean", True))
    if len(sweep) > 1 and not clean:
        raise ValueError(
            f"config.ablation.clean is False and its sweep has {len(sweep)} settings, of which "
            "cells without noise choose one; it must be True"
        )
    return _checked(Study(source, algorithms, places, source.ablation.reference, sweep, clean))


def _sweep(section: ConfigDict) -> dict[str, dict[str, Any]]:
    """Every combination of the values of a sweep."""
    axes, made = flatten(_plain(section)), {}
    for values in itertools.product(*axes.values()):
        label = ",".join(f"{value:g}" if type(value) is float else str(value) for value in values)
        made[label] = dict(zip(axes, values, strict=True))
    return made


def _check(source: ConfigDict) -> None:
    for name in ("run", "seeds", "sweep", "families", "noise", "algorithms", "reference"):
        if name not in source:
            raise ValueError(f"config.{name} is missing; a study has it")
    if len(set(source.seeds)) != len(source.seeds) or not source.seeds:
        raise ValueError(f"config.seeds is {tuple(source.seeds)}; it must hold different integers")
    if not source.run.warm_start.steps and not source.run.weights.source:
        raise ValueError(
            "config.run.warm_start.steps is 0 and config.run.weights.source ''; cells would start "
            "from random weights, so one of them must be set"
        )
    seconds = source.get("cell_seconds", GUESS)
    if type(seconds) not in (int, float) or not seconds > 0:
        raise ValueError(f"config.cell_seconds is {seconds!r}; it must be a number above 0")
    for kind, part in source.noise.items():
        levels = (0.0, *part.levels)
        if kind == CLEAN or part.family not in source.families:
            known = ", ".join(source.families)
            raise ValueError(
                f"config.noise.{kind}.family is {part.family!r}; it must be one of {known}, and "
                f"the name not {CLEAN!r}"
            )
        if len(levels) < 2 or any(a >= b for a, b in itertools.pairwise(levels)):
            raise ValueError(
                f"config.noise.{kind}.levels is {tuple(part.levels)}; levels must increase from "
                "above 0"
            )


def _checked(study: Study) -> Study:
    if study.reference not in study.algorithms:
        known = ", ".join(study.algorithms)
        raise ValueError(f"config.reference is {study.reference!r}; it must be one of {known}")
    return study


def _chosen(source: ConfigDict, section: str) -> list[tuple[str, float]]:
    """The places of a section that is not run everywhere."""
    places = []
    for kind, levels in source[section].cells.items():
        if kind not in source.noise:
            known = ", ".join(source.noise)
            raise ValueError(
                f"config.{section}.cells.{kind} is no kind of noise; there are {known}"
            )
        places += [(kind, float(level)) for level in levels]
    return places


def _tables(section: ConfigDict) -> dict[str, dict[str, Any]]:
    return {name: _plain(overrides) for name, overrides in section.items()}


def _plain(section: Any) -> Any:
    if isinstance(section, Mapping | ConfigDict):
        return {name: _plain(value) for name, value in section.items()}
    return section


def _put(run: ConfigDict, path: str, value: Any) -> None:
    *sections, name = path.split(".")
    section = run
    for part in sections:
        section = getattr(section, part)
    if not isinstance(section, ConfigDict) or name not in section:
        getattr(section, name)  # says which setting it may have meant
    setattr(section, name, value)


def select(cells: Sequence[Cell], only: Mapping[str, Sequence[str]]) -> Iterator[Cell]:
    """The cells whose coordinates are among those of `only`, as text."""
    for cell in cells:
        if all(_text(getattr(cell, name)) in values for name, values in only.items()):
            yield cell


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def parse_only(text: str) -> dict[str, list[str]]:
    """ "algorithm=dfpo,algorithm=ppo,noise=flip" -> values by coordinate.

    Raises:
      ValueError: a part is no COORDINATE=VALUE.
    """
    only: dict[str, list[str]] = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if name not in COORDINATES or not equals or not value:
            raise ValueError(
                f"--only: {part!r} must be NAME=VALUE, with a name of {', '.join(COORDINATES)}"
            )
        if name == "level":
            try:
                value = f"{float(value):g}"
            except ValueError:
                raise ValueError(f"--only: level is {value!r}; it must be a number") from None
        only.setdefault(name, []).append(value)
    return only
