"""What the rows of a study say: settings chosen, gains, tolerances and paired tests."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from _study.grid import CLEAN
from _study.statistics import Interval, sign_flip_test, tolerance_interval

Row = Mapping[str, Any]


def best_setting(scores: Mapping[str, Sequence[float]]) -> str:
    """The setting with the highest mean training accuracy; of equal ones the first."""
    return max(scores, key=lambda setting: sum(scores[setting]) / len(scores[setting]))


@dataclass(frozen=True)
class Summary:
    """The rows of a study, of which those without noise are of the chosen settings alone.

    Attributes:
      rows: the rows; where there are none without noise, all.
      reference: the algorithm that others are compared with.
      algorithms: in order.
      settings: (family, algorithm) -> the mean training accuracy of each setting, and the chosen.
    """

    rows: Sequence[Row]
    reference: str
    algorithms: Sequence[str]
    settings: Mapping[tuple[str, str], tuple[dict[str, float], str]]

    @property
    def families(self) -> list[str]:
        """The families of rewards with cells without noise."""
        return list(dict.fromkeys(family for family, _ in self.settings))

    @property
    def kinds(self) -> dict[str, str]:
        """Kind of noise -> its family, in order."""
        noisy = [row for row in self.rows if row["noise"] != CLEAN]
        return dict(sorted({row["noise"]: row["family"] for row in noisy}.items()))

    def levels(self, kind: str) -> list[float]:
        """The levels of a kind of noise."""
        return sorted({row["level"] for row in self.rows if row["noise"] == kind})

    def cells(self, algorithm: str, family: str, kind: str, level: float) -> dict[int, Row]:
        """Seed -> row."""
        wanted = (algorithm, family, kind, level)
        names = ("algorithm", "family", "noise", "level")
        found = [row for row in self.rows if tuple(row[name] for name in names) == wanted]
        return {row["seed"]: row for row in sorted(found, key=lambda row: row["seed"])}

    def accuracy(self, algorithm: str, kind: str, level: float, where: str) -> dict[int, float]:
        """Seed -> accuracy after training; `kind` may be a family, for no noise."""
        family = self.kinds.get(kind, kind)
        cells = self.cells(algorithm, family, kind if kind in self.kinds else CLEAN, level)
        return {seed: row[where][1] for seed, row in cells.items() if where in row}

    def gains(self, algorithm: str, kind: str, where: str = "sampled") -> np.ndarray | None:
        """[seeds, 1 + levels] after less before, without noise first; None with fewer levels."""
        family, columns = self.kinds[kind], []
        for name, level in ((CLEAN, 0.0), *((kind, level) for level in self.levels(kind))):
            cells = self.cells(algorithm, family, name, level)
            columns.append({s: row[where][1] - row[where][0] for s, row in cells.items()})
        seeds = sorted(set.intersection(*(set(column) for column in columns)))
        if not seeds:
            return None
        return np.array([[column[seed] for column in columns] for seed in seeds])

    def tolerance(self, algorithm: str, kind: str) -> Interval | None:
        """The level at which half of the gain without noise is lost."""
        gains = self.gains(algorithm, kind)
        return None if gains is None else tolerance_interval([0.0, *self.levels(kind)], gains)

    def compared(
        self, algorithm: str, kind: str, level: float, where: str = "sampled"
    ) -> tuple[float, float]:
        """Mean difference to the reference over the seeds of both, and its p-value; or NaN."""
        ours = self.accuracy(algorithm, kind, level, where)
        theirs = self.accuracy(self.reference, kind, level, where)
        pairs = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
        if not pairs or algorithm == self.reference:
            return math.nan, math.nan
        return float(np.mean(pairs)), sign_flip_test(pairs)

    def ratio(self, kind: str, rivals: Iterable[str]) -> tuple[float, str, float] | None:
        """Tolerance of the reference over that of the best rival: the rival, the ratio, its value.

        The ratio is NaN where it has no meaning, inf where the reference alone never loses half.
        None where a tolerance is missing.
        """
        ours = self.tolerance(self.reference, kind)
        found = {name: self.tolerance(name, kind) for name in rivals if name != self.reference}
        found = {name: t.value for name, t in found.items() if t and not math.isnan(t.value)}
        if ours is None or not found:
            return None
        best = max(found, key=found.get)
        both_endless = math.isinf(ours.value) and math.isinf(found[best])
        return (math.nan if both_endless else ours.value / found[best]), best, found[best]


def summarize(rows: Sequence[Row], reference: str, order: Sequence[str] = ()) -> Summary:
    """The summary of a study's rows.

    Args:
      rows: one for each cell.
      reference: the algorithm that others are compared with.
      order: of algorithms; by default the reference, then the others by name.

    Raises:
      ValueError: there is no row, or none of the reference.
    """
    names = {row["algorithm"] for row in rows}
    if reference not in names:
        there = f"there are {', '.join(sorted(names))}" if names else "there are no rows"
        raise ValueError(f"--reference is {reference!r}, of which there is no row; {there}")
    wanted = list(order) or [reference, *sorted(names - {reference})]
    algorithms = [name for name in wanted if name in names]
    scores: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in rows:
        if row["noise"] == CLEAN:
            place = scores.setdefault((row["family"], row["algorithm"]), {})
            place.setdefault(row["setting"], []).append(row["sampled"][1])
    settings = {}
    for family in sorted({family for family, _ in scores}):
        for name in algorithms:
            if found := scores.get((family, name)):
                means = {setting: sum(x) / len(x) for setting, x in found.items()}
                settings[family, name] = means, best_setting(found)
    kept = [
        row
        for row in rows
        if (place := (row["family"], row["algorithm"])) not in settings
        or row["setting"] == settings[place][1]
    ]
    return Summary(kept, reference, algorithms, settings)
