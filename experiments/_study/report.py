"""The report of a study from its rows alone: Markdown, and one HTML page with plots."""

import html
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from _study.grid import CLEAN
from _study.summary import Row, Summary, summarize
from _study.tables import all_tables

from dfpo_jax.training import charts
from dfpo_jax.training.page import write_page

_SHOWN = 9  # lines of one chart
_PLACES = {"sampled": "samples", "in": "greedy in-domain", "out": "greedy out-of-domain"}


def markdown(rows: Sequence[Row], reference: str, rivals: Sequence[str], order=()) -> str:
    """All tables.

    Raises:
      ValueError: there is no row of the reference.
    """
    summary = summarize(rows, reference, order)
    tables = "\n".join(table.markdown() for table in all_tables(summary, rivals))
    return f"{facts(rows)}\n\n{tables}"


def write(
    path: Path, title: str, rows: Sequence[Row], reference: str, rivals: Sequence[str], order=()
) -> None:
    """The HTML page, and beside it the Markdown.

    Raises:
      ValueError: there is no row of the reference.
    """
    summary = summarize(rows, reference, order)
    first, *others = all_tables(summary, rivals)
    body = f"<h1>{html.escape(title)}</h1><p>{html.escape(facts(rows))}</p>{first.html()}"
    body += f'<div class="charts">{tolerances(summary)}</div>'
    body += f'<h2>Accuracy by noise level</h2><div class="charts">{plots(summary)}</div>'
    body += "".join(table.html() for table in others)
    write_page(path, title, body)
    text = markdown(rows, reference, rivals, order)
    temporary = path.with_suffix(".md.tmp")
    temporary.write_text(f"# {title}\n\n{text}", encoding="utf-8")
    os.replace(temporary, path.with_suffix(".md"))


def facts(rows: Sequence[Row]) -> str:
    """How much was run, with what."""
    hours = sum(row["seconds"] for row in rows) / 3600
    versions = []
    for name, label in (("dfpo_jax", "dfpo_jax"), ("jax", "JAX"), ("commit", "commit")):
        values = sorted({str(row[name]) for row in rows if row.get(name)})
        versions.append(f"{label} {', '.join(values) or 'unknown'}")
    return f"{len(rows)} cells, {hours:.1f} hours of workers in all; {'; '.join(versions)}."


def tolerances(summary: Summary) -> str:
    """A chart of tolerances with their intervals for each kind of noise of several levels."""
    cards = []
    for kind in summary.kinds:
        levels = summary.levels(kind)
        found = {name: summary.tolerance(name, kind) for name in summary.algorithms}
        found = {name: t for name, t in found.items() if t and not math.isnan(t.value)}
        if found and len(levels) > 1:
            chart = charts.draw_intervals(
                {name: (t.value, t.low, t.high) for name, t in found.items()},
                x=f"level of {kind} noise at which half of the gain is lost",
                end=levels[-1],
                label=f"tolerance of {kind} noise, with 90 % intervals",
            )
            cards.append(f"<figure><h3>{html.escape(kind)}</h3>{chart}</figure>")
    return "".join(cards)


def plots(summary: Summary) -> str:
    """A chart for each kind of noise and accuracy."""
    cards = []
    for kind, family in summary.kinds.items():
        for where, name in _PLACES.items():
            series = {}
            for algorithm in summary.algorithms:
                points = _line(summary, algorithm, family, kind, where)
                if len(points) > 1 and len(series) < _SHOWN:
                    series[algorithm] = tuple(zip(*points, strict=True))
            if series:
                label = f"accuracy, {name}, against the level of {kind} noise"
                axes = {"x": f"level of {kind} noise", "y": f"accuracy after training, {name}"}
                chart = charts.draw_lines(series, **axes, label=label)
                cards.append(f"<figure><h3>{html.escape(kind)}, {name}</h3>{chart}</figure>")
    return "".join(cards)


def _line(
    summary: Summary, algorithm: str, family: str, kind: str, where: str
) -> list[tuple[float, float]]:
    """(level, mean accuracy over seeds), without noise first."""
    points = []
    for noise, level in ((CLEAN, 0.0), *((kind, x) for x in summary.levels(kind))):
        cells = summary.cells(algorithm, family, noise, level).values()
        if found := [cell[where][1] for cell in cells if where in cell]:
            points.append((level, float(np.mean(found))))
    return points
