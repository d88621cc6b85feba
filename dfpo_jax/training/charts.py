"""Charts of the report: matplotlib figures as inline SVG that follows the page's colours.

A chart is HTML: a legend, which wraps like text, and the figure below it.

Figures use the object-oriented API with fixed settings, so they neither depend on nor change the
caller's matplotlib style and pyplot state. Every colour is a key of `THEME` and becomes a CSS
variable, so that one drawing is readable on light and on dark pages.
"""

import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FuncFormatter,
    LogFormatterMathtext,
    LogLocator,
    MaxNLocator,
    NullLocator,
    PercentFormatter,
)

from dfpo_jax.training.curves import Curve

# Colour drawn -> (light page, dark page). Series use the colours of Okabe and Ito (2008), which
# colour-blind readers can tell apart, lightened for dark pages.
THEME = {
    "#0072b2": ("#0072b2", "#56b4e9"),
    "#d55e00": ("#d55e00", "#ff9045"),
    "#009e73": ("#008a65", "#2fc79b"),
    "#cc79a7": ("#b4558a", "#e39fc4"),
    "#8a6d00": ("#8a6d00", "#e6b422"),
    "#5a5a6e": ("#5a5a6e", "#a9a9bd"),
    "#1f2329": ("#1f2329", "#e4e6ea"),
    "#d5d8dd": ("#dfe2e7", "#3a3e45"),
}
SERIES = tuple(THEME)[:6]
_INK, _GRID = tuple(THEME)[6:]
_DASHES = ((), (4, 1.5), (6, 1.5, 1, 1.5), (1, 1.5), (5, 1, 1, 1, 1, 1), (2.5, 1))
_WIDTH = 1.9
_STEPS = [1, 2, 2.5, 5, 10]
_MAX_POINTS, _MANY_POINTS = 600, 40

_SETTINGS = {
    "svg.fonttype": "none",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.linewidth": 0.8,
    "grid.color": _GRID,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "figure.subplot.left": 0.18,
    "figure.subplot.right": 0.97,
    "figure.subplot.bottom": 0.18,
    "figure.subplot.top": 0.89,
}


def _settings():
    return matplotlib.style.context(["default", _SETTINGS])


def to_svg(figure: Figure, label: str) -> str:
    """A figure as a themed, scalable SVG element for HTML, without metadata or addresses.

    Args:
      figure: a figure that uses only colours of `THEME`.
      label: a description for screen readers.
    """
    buffer = io.StringIO()
    with _settings():
        FigureCanvasSVG(figure).print_svg(
            buffer, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # An inline <style> would apply to the whole page, whose own style does the same.
    aside = r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->"
    text = re.sub(aside, "", text, flags=re.DOTALL)
    text = re.sub(r'\s(xmlns(:\w+)?|version)="[^"]*"', "", text)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = text.replace("xlink:href", "href")
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", text)
    for number, colour in enumerate(THEME):
        text = text.replace(colour, f"var(--c{number})")
    size = r'(<svg[^>]*?) width="[^"]*"'
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    name = html.escape(label)
    text = re.sub(size, lambda m: f'{m[1]} role="img" aria-label="{name}"', text, count=1)
    return re.sub(r"\s*\n\s*", "\n", text).strip()


def legend(series: Mapping[str, int]) -> str:
    """An HTML list of labels with samples of their lines; `series` gives each label's style."""
    items = []
    for label, number in series.items():
        dashes = " ".join(f"{2.2 * dash:.3g}" for dash in _dashes(number))
        line = (
            f'<svg class="key" viewBox="0 0 28 8" aria-hidden="true"><path d="M0 4H28" '
            f'stroke="var(--c{number % 6})" stroke-width="2.2" stroke-dasharray="{dashes}"/></svg>'
        )
        items.append(f"<li>{line}{html.escape(label)}</li>")
    return f'<ul class="legend">{"".join(items)}</ul>'


def _dashes(number: int) -> tuple[float, ...]:
    return _DASHES[(number + number // 6) % 6]  # a seventh series repeats a colour, not dashes


def _line(number: int) -> dict[str, Any]:
    dashes = _dashes(number)
    return {
        "color": SERIES[number % 6],
        "linestyle": (0, dashes) if dashes else "-",
        "linewidth": _WIDTH,
    }


def _axes(width: float, height: float, *, x: str, y: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height))
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    axes.set_xlabel(x)
    # Above the axis, where wide tick labels cannot overlap it.
    axes.set_title(y, loc="left", x=-0.16, fontsize=10, pad=7)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=_STEPS))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=_STEPS))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.4g}".replace("-", "\u2212")))
    return figure, axes


def _points(rows: Sequence[Mapping[str, float]], key: str) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(row["step"], row[key]) for row in rows if key in row and math.isfinite(row[key])]
    steps, values = np.array(pairs, np.float64).reshape(-1, 2).T
    return steps, values


def series_of(curve: Curve, rows: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """Labels of a chart's series by the key of a metric; "*" is replaced by what is in the rows."""
    series = {}
    for key, label in curve.series.items():
        if not key.endswith("*"):
            series[key] = label
            continue
        found = sorted({k for row in rows for k in row if k.startswith(key[:-1])})
        found = [k for k in found if not k.endswith("/gradient_norm")]  # not a loss
        series |= {k: k[len(key) - 1 :].replace("_", " ") for k in found}
    return series


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred mean over a twentieth of the points (at least 5), over fewer at the ends."""
    half = max(len(values) // 40, 2)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    first, last = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)


def _thin(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # Keep the lowest and highest point of each bin, so that no spike is lost.
    if len(steps) <= _MAX_POINTS:
        return steps, values
    keep = {0, len(steps) - 1}
    for part in np.array_split(np.arange(len(steps)), _MAX_POINTS // 2):
        keep |= {int(part[values[part].argmin()]), int(part[values[part].argmax()])}
    index = sorted(keep)
    return steps[index], values[index]


def draw_curve(curve: Curve, rows: Sequence[Mapping[str, float]]) -> tuple[str | None, list[str]]:
    """One learning curve chart.

    Args:
      curve: what to draw.
      rows: metrics rows; keys may be missing and values NaN.

    Returns:
      The chart, or None without any data, and the labels of the series without data.
    """
    series = series_of(curve, rows)
    data = {key: _points(rows, key) for key in series}
    missing = [label for key, label in series.items() if not len(data[key][0])]
    drawn = [key for key in series if len(data[key][0])]
    if not drawn:
        return None, missing
    with _settings():
        figure, axes = _axes(3.7, 2.5, x="iteration", y=curve.unit)
        for number, key in enumerate(series):
            if key in drawn:
                _draw_series(axes, *data[key], number)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=_STEPS, integer=True))
        axes.set_xlim(*_span_steps(rows))
        values = np.concatenate([data[key][1] for key in drawn])
        _scale(axes, curve, values)
    svg = to_svg(figure, f"{curve.title} in {curve.unit} against the iteration")
    numbers = {label: n for n, (key, label) in enumerate(series.items()) if key in drawn}
    return (legend(numbers) if len(series) > 1 else "") + svg, missing


def draw_lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, x: str, y: str, label: str
) -> str:
    """A chart of shares, drawn in percent, as lines through their points.

    Args:
      series: label of a line -> its horizontal and vertical positions; at least one line.
      x, y: labels of the axes.
      label: a description for screen readers.
    """
    with _settings():
        figure, axes = _axes(4.8, 3.2, x=x, y=y)
        for number, points in enumerate(series.values()):
            axes.plot(*points, marker="o", markersize=3.5, **_line(number))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    return legend({name: number for number, name in enumerate(series)}) + to_svg(figure, label)


def draw_intervals(
    found: Mapping[str, tuple[float, float, float]], *, x: str, end: float, label: str
) -> str:
    """Estimates with their intervals, a row for each, the first on top.

    Args:
      found: name -> estimate, low and high end. Where one is infinite, an arrow at `end` says so.
      x: label of the axis.
      end: where the axis ends.
      label: a description for screen readers.
    """
    with _settings():
        figure, axes = _axes(4.8, 0.9 + 0.26 * len(found), x=x, y="")
        figure.subplots_adjust(left=0.3, top=0.97, bottom=0.55 / (0.9 + 0.26 * len(found)))
        for row, (value, low, high) in enumerate(found.values()):
            colour = {"color": SERIES[0], "clip_on": False}
            axes.plot(np.minimum([low, high], end), [row, row], lw=_WIDTH, **colour)
            axes.plot(min(value, end), row, marker="o", markersize=5, **colour)
            if math.isinf(high):
                axes.plot(end, row, marker=">", markersize=6, **colour)
        axes.set_yticks(range(len(found)), list(found))
        axes.set_xlim(0.0, end)
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
    return to_svg(figure, label)


def _draw_series(axes, steps: np.ndarray, values: np.ndarray, number: int) -> None:
    if len(steps) <= _MANY_POINTS:
        axes.plot(steps, values, marker="o", markersize=3.5, **_line(number))
        return
    axes.plot(*_thin(steps, values), lw=0.7, alpha=0.35, color=SERIES[number % 6])
    axes.plot(*_thin(steps, smooth(values)), **_line(number))


def _span_steps(rows: Sequence[Mapping[str, float]]) -> tuple[float, float]:
    low, high = min(row["step"] for row in rows), max(row["step"] for row in rows)
    pad = 0.03 * (high - low) or 0.5
    return low - pad, high + pad


def _scale(axes, curve: Curve, values: np.ndarray) -> None:
    if curve.percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    if curve.log and values.min() > 0 and values.max() > 30 * values.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=6))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(LogFormatterMathtext())
    elif curve.zero_based:
        low, high = min(values.min(), 0.0), max(values.max(), 0.0)
        pad = 0.06 * (high - low) or 1.0
        axes.set_ylim(low - pad * (low < 0), high + pad)


def draw_distributions(quantiles: np.ndarray, observed: np.ndarray) -> tuple[str, int]:
    """Predicted against observed distribution of the return at one state.

    Args:
      quantiles: [M] predicted quantiles, in units of reward, each with weight 1/M.
      observed: [k] observed returns.

    Returns:
      The chart, and the number of observed returns outside its horizontal axis, which excludes
      outliers that would squeeze everything else.
    """
    quantiles, observed = (np.sort(x[np.isfinite(x)]) for x in (quantiles, observed))
    low, high = _span(quantiles, observed)
    with _settings():
        labels = {"x": "return G, in units of reward", "y": "share of returns up to G"}
        figure, axes = _axes(4.8, 2.9, **labels)
        for number, values in enumerate((observed, quantiles)):
            if len(values):
                levels = np.arange(len(values) + 1) / len(values)
                x = np.concatenate([[min(low, values[0])], values, [max(high, values[-1])]])
                y = np.append(levels, 1.0)
                axes.step(x, y, where="post", **_line(number))
        axes.set_xlim(low, high)
        axes.set_ylim(-0.02, 1.04)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    beyond = int(np.sum((observed < low) | (observed > high)))
    svg = to_svg(figure, "predicted and observed distribution of the return")
    return legend({"observed": 0, "predicted": 1}) + svg, beyond


def _span(quantiles: np.ndarray, observed: np.ndarray) -> tuple[float, float]:
    pooled = np.concatenate([quantiles, observed])
    if not len(pooled):
        return -1.0, 1.0
    core = [np.quantile(x, [0.1, 0.9]) for x in (quantiles, observed) if len(x)]
    low, high = min(c[0] for c in core), max(c[1] for c in core)
    width = max(high - low, 0.1 * max(abs(low), abs(high)), 1e-3)
    low, high = max(pooled.min(), low - width), min(pooled.max(), high + width)
    pad = 0.08 * max(high - low, width)
    return low - pad, high + pad


def draw_trajectories(positions: np.ndarray) -> str:
    """Paths of the flow at one state, from noise at time 0 to the return at time 1.

    Args:
      positions: [times, M] in the units that the critic learns in, at evenly spaced times; one path
        per noise quantile, in ascending order.

    Returns:
      The chart.
    """
    times = np.linspace(0.0, 1.0, len(positions))
    count = positions.shape[1]
    shown = np.unique(np.linspace(0, count - 1, min(count, 24)).round().astype(int))
    with _settings():
        labels = {"x": "flow time t (0: noise, 1: return)", "y": "position z, normalised"}
        figure, axes = _axes(4.8, 2.9, **labels)
        segments = [np.column_stack([times, positions[:, i]]) for i in shown]
        axes.add_collection(LineCollection(segments, colors=SERIES[5], alpha=0.45, lw=0.8))
        shares = {"90%": (0.9, 1), "50%": (0.5, 0), "10%": (0.1, 2)}
        for share, number in shares.values():
            axes.plot(times, positions[:, min(int(share * count), count - 1)], **_line(number))
        axes.set_xlim(0.0, 1.0)
        axes.margins(y=0.06)
    svg = to_svg(figure, "trajectories of the value flow from noise to the return")
    keys = {f"noise at {name}": number for name, (_, number) in shares.items()}
    return legend(keys) + svg
