"""A summary as tables: Markdown, and the same as HTML."""

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from _study.statistics import Interval
from _study.summary import Summary

MINUS = "\u2212"


class Table(NamedTuple):
    """A heading, what it shows, column titles, and rows of text."""

    title: str
    words: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """With a pipe table."""
        lines = ["| " + " | ".join(self.head) + " |", "|" + "---|" * len(self.head)]
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        return f"### {self.title}\n\n{self.words}\n\n" + "\n".join(lines) + "\n"

    def html(self) -> str:
        """With a table element."""
        head = "".join(f'<th scope="col">{html.escape(x)}</th>' for x in self.head)
        rows = "".join(
            f'<tr><th scope="row">{html.escape(row[0])}</th>'
            + "".join(f"<td>{html.escape(x)}</td>" for x in row[1:])
            + "</tr>"
            for row in self.rows
        )
        return (
            f'<h2>{html.escape(self.title)}</h2><p class="note">{html.escape(self.words)}</p>'
            f'<div style="overflow-x:auto"><table class="figures"><thead><tr>{head}</tr></thead>'
            f"<tbody>{rows}</tbody></table></div>"
        )


def all_tables(summary: Summary, rivals: Sequence[str]) -> list[Table]:
    """Tolerances first, then what they are made of; none that is empty."""
    tables = [tolerances(summary, rivals), clean(summary)]
    tables += [*(at_levels(summary, kind) for kind in summary.kinds), sweeps(summary)]
    return [table for table in tables if table.rows]


def tolerances(summary: Summary, rivals: Sequence[str]) -> Table:
    """The headline."""
    rows = []
    for name in summary.algorithms:
        cells = [
            _tolerance(summary.tolerance(name, kind), summary.levels(kind)[-1])
            for kind in summary.kinds
        ]
        if any(cell != "" for cell in cells):
            rows.append([name, *cells])
    ratios = [_ratio(summary.ratio(kind, rivals)) for kind in summary.kinds]
    if any(ratios):
        rows.append([f"{summary.reference} / best rival", *ratios])
    seeds = len({row["seed"] for row in summary.rows})
    return Table(
        "Tolerance",
        "The noise level at which half of the gain without noise (share of right samples at the "
        "end less that at the start of training, mean over seeds) is lost, by straight lines "
        "between levels; in brackets "
        f"its 90 % bootstrap interval over {seeds} seeds, which with so few seeds is coarse. "
        '"> x": half is not lost up to the highest level. "no gain": training without noise gains '
        f"nothing, so that there is no tolerance. Rivals: {', '.join(rivals) or 'none'}.",
        ["", *summary.kinds],
        rows,
    )


def _tolerance(found: Interval | None, highest: float) -> str:
    if found is None:
        return ""
    if math.isnan(found.value):
        return "no gain"
    low, high = (_level(end, highest) for end in (found.low, found.high))
    some = f"; no gain in {found.undefined:.0%}" if found.undefined > 0 else ""
    return f"{_level(found.value, highest)} [{low}, {high}{some}]"


def _level(value: float, highest: float) -> str:
    return f"> {highest:g}" if math.isinf(value) else f"{value:.3g}"


def _ratio(found: tuple[float, str, float] | None) -> str:
    if found is None:
        return ""
    ratio, rival, value = found
    if math.isnan(ratio):
        return f"none ({rival})"
    if math.isinf(ratio):
        return f"above all levels ({rival} {value:.3g})"
    return f"{ratio:.2f} ({rival})"


def clean(summary: Summary) -> Table:
    """Without noise: accuracies before and after, what the critic explains, time."""
    rows = []
    for family in summary.families:
        for name in summary.algorithms:
            cells = list(summary.cells(name, family, "clean", 0.0).values())
            if not cells:
                continue
            pairs = []
            for where in ("sampled", "in", "out"):
                ends = np.array([cell[where] for cell in cells if where in cell])
                pairs.append(_pair(ends) if len(ends) else "")
            explained = [c["explained"] for c in cells if c.get("explained") is not None]
            shown = f"{np.mean(explained):.3f}".replace("-", MINUS) if explained else ""
            seconds = np.mean([cell.get("cpu_seconds", cell["seconds"]) for cell in cells])
            rows.append([name, family, *pairs, shown, f"{seconds:.0f}"])
    return Table(
        "Without noise",
        "Accuracy in % at the start and the end of training, by clean rewards and in the mean over "
        "seeds: of samples on training prompts, and greedy on held-out prompts in and out of "
        "domain; the critic's explained variance of training returns; seconds of one core.",
        ["", "rewards", "samples", "in-domain", "out-of-domain", "explained variance", "s"],
        rows,
    )


def _pair(ends: np.ndarray) -> str:
    before, after = ends.mean(axis=0)
    return f"{100 * before:.1f} \u2192 {100 * after:.1f}"


def at_levels(summary: Summary, kind: str) -> Table:
    """Accuracy at every level of a kind of noise, against the reference."""
    levels, rows = summary.levels(kind), []
    for name in summary.algorithms:
        cells = []
        for level in levels:
            text = [
                f"{100 * np.mean(list(found.values())):.1f}"
                for where in ("sampled", "in", "out")
                if (found := summary.accuracy(name, kind, level, where))
            ]
            difference, p = summary.compared(name, kind, level)
            versus = "" if math.isnan(p) else f" ({_points(difference)}, p {p:.2g})"
            cells.append(" / ".join(text) + versus)
        if any(cells):
            rows.append([name, *cells])
    seeds = len({row["seed"] for row in summary.rows if row["noise"] == kind})
    return Table(
        f"Accuracy under {kind} noise",
        "Accuracy in % at the end of training, by clean rewards and in the mean over seeds: of "
        "samples on training prompts / greedy in-domain / greedy out-of-domain. In brackets the "
        f"difference of the first to {summary.reference} in points "
        "and the p-value of the paired sign-flip test over seeds, "
        f"which with {seeds} seeds is at least {2.0 ** (1 - seeds):.2g}.",
        ["", *(f"{level:g}" for level in levels)],
        rows,
    )


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f}".replace("-", MINUS)


def sweeps(summary: Summary) -> Table:
    """What every algorithm was tried with."""
    rows = [
        [name, family, ", ".join(f"{s}: {100 * mean:.1f}" for s, mean in means.items()), chosen]
        for (family, name), (means, chosen) in summary.settings.items()
    ]
    return Table(
        "Settings tried",
        "Every algorithm was tried without noise with the same settings; the one whose training "
        "responses were right most often in the last fifth of the iterations, in %, mean over "
        "seeds, is used at every noise level. Held-out accuracies choose nothing.",
        ["", "rewards", "training accuracy", "chosen"],
        rows,
    )
