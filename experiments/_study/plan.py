"""What is done of a study and what is left, in the order in which it is run."""

from collections.abc import Mapping, Sequence
from typing import Any

from _study.grid import Cell, Study, select
from _study.results import choose, match


class Plan:
    """The cells of a study against its rows.

    Settings are chosen per algorithm and family by the cells without noise. These therefore run
    whenever a cell with noise is wanted, whatever `only` says of their seed.

    Args:
      study: the grid.
      rows: all rows there are.
      only: values by coordinate; a cell that has others is left out.
    """

    def __init__(
        self, study: Study, rows: Sequence[Mapping[str, Any]], only: Mapping[str, Sequence[str]]
    ):
        """Match rows and cells."""
        self.study, self._only = study, only
        self._pairs = [(name, f) for name in study.algorithms for f in study.families(name)]
        sweep = [cell for pair in self._pairs for cell in study.sweep_cells(*pair)]
        clean = match(sweep, rows)
        self.rows, self._stale = dict(clean.rows), list(clean.stale)
        self._chosen: dict[tuple[str, str], str] = {}
        for pair in self._pairs:
            if self._choose(pair):
                noisy = study.noisy_cells(*pair, self._chosen[pair])
                found = match(noisy, rows)
                self.rows |= found.rows
                self._stale += found.stale
        self._total = len(rows)

    def _choose(self, pair: tuple[str, str]) -> bool:
        if pair not in self._chosen:
            setting = choose(self.study, *pair, self.rows)
            if setting is not None:
                self._chosen[pair] = setting
        return pair in self._chosen

    def add(self, row: Mapping[str, Any]) -> None:
        """A cell is done."""
        self.rows[row["cell"]] = dict(row)

    def ready(self) -> list[Cell]:
        """Cells that can be run, those without noise first, then seed by seed."""
        sweep, noisy = [], []
        for pair in self._pairs:
            chosen, cells = self._choose(pair), self.study.sweep_cells(*pair)
            wanted = self._noisy(pair)
            sweep += cells if wanted else select(cells, self._only)
            noisy += wanted if chosen else ()
        order = {seed: number for number, seed in enumerate(self.study.seeds)}
        ready = [*sweep, *sorted(noisy, key=lambda cell: order[cell.seed])]
        return [cell for cell in ready if cell.hash not in self.rows]

    def waiting(self) -> list[Cell]:
        """Cells whose setting is not chosen yet; they show the first one."""
        pairs = [pair for pair in self._pairs if not self._choose(pair)]
        return [cell for pair in pairs for cell in self._noisy(pair)]

    def finished(self) -> list[Cell]:
        """Cells that have a row and are among those wanted."""
        cells = []
        for pair in self._pairs:
            cells += self.study.sweep_cells(*pair)
            cells += self._noisy(pair) if self._choose(pair) else ()
        return [cell for cell in select(cells, self._only) if cell.hash in self.rows]

    def _noisy(self, pair: tuple[str, str]) -> list[Cell]:
        setting = self._chosen.get(pair, next(iter(self.study.sweep)))
        return list(select(self.study.noisy_cells(*pair, setting), self._only))

    def seconds(self, cells: Sequence[Cell]) -> float:
        """Estimated seconds of cells, from the rows of their algorithms, or else from all."""
        times: dict[str, list[float]] = {}
        for row in self.rows.values():
            times.setdefault(row["algorithm"], []).append(row["seconds"])
        every = [x for values in times.values() for x in values] or [self.study.cell_seconds]
        means = {name: sum(values) / len(values) for name, values in times.items()}
        return sum(means.get(cell.algorithm, sum(every) / len(every)) for cell in cells)

    def words(self) -> str:
        """How many cells are done, and which rows do not count."""
        left = len(self.ready()) + len(self.waiting())
        text = f"{len(self.rows)} cells are done, {left} are left"
        if self._stale:
            shown = ", ".join(sorted({row["algorithm"] for row in self._stale}))
            text += f"; {len(self._stale)} rows were run with other settings ({shown}): ignored"
        other = self._total - len(self._stale) - len(self.rows)
        if other > 0:
            text += f"; {other} rows are of no cell of this study, or repeat one"
        return text
