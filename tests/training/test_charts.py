"""Charts: what is drawn, smoothed and left out."""

import numpy as np
import pytest

from dfpo_jax.training import charts


def test_the_step_curve_is_the_distribution_function(monkeypatch):
    figures = []
    monkeypatch.setattr(charts, "to_svg", lambda figure, label: figures.append(figure) or "")
    quantiles, observed = np.array([2.0, 0.0, 1.0, 3.0]), np.array([1.0, 1.0, 0.0, 2.5])
    _, beyond = charts.draw_distributions(quantiles, observed)
    assert beyond == 0
    lines = figures[0].axes[0].lines
    for line, values in zip(lines, (observed, quantiles), strict=True):
        assert line.get_drawstyle() == "steps-post"
        x, y = line.get_data()
        low, high = figures[0].axes[0].get_xlim()
        assert x[0] <= low and x[-1] >= high
        for at in (-0.1, 0.0, 0.5, 1.0, 1.7, 2.5, 3.0):
            place = np.searchsorted(x, at, side="right") - 1
            assert y[place] == np.mean(values <= at)


@pytest.mark.parametrize("size", [1, 4, 41, 200])
def test_smooth_against_a_loop(size):
    values = np.random.default_rng(size).normal(size=size)
    half = max(size // 40, 2)
    expected = [values[max(i - half, 0) : i + half + 1].mean() for i in range(size)]
    np.testing.assert_allclose(charts.smooth(values), expected, rtol=1e-12, atol=1e-12)


def test_thinning_keeps_ends_and_extremes():
    steps, values = np.arange(5000.0), np.random.default_rng(0).normal(size=5000)
    values[1234], values[4321] = 99.0, -99.0
    kept, thinned = charts._thin(steps, values)
    assert len(kept) <= 602 and np.all(np.diff(kept) > 0)
    assert kept[0] == 0 and kept[-1] == 4999 and {1234.0, 4321.0} <= set(kept)
    np.testing.assert_array_equal(values[kept.astype(int)], thinned)


def test_intervals_end_in_arrows_where_they_are_endless(monkeypatch):
    figures = []
    monkeypatch.setattr(charts, "to_svg", lambda figure, label: figures.append(figure) or "")
    found = {"a": (0.2, 0.1, 0.3), "b": (0.3, 0.2, np.inf), "c": (np.inf, np.inf, np.inf)}
    charts.draw_intervals(found, x="level", end=0.4, label="tolerances")
    axes = figures[0].axes[0]
    drawn = [(line.get_marker(), *map(list, line.get_data())) for line in axes.lines]
    assert [row for row in drawn if row[0] == "None"] == [
        ("None", [0.1, 0.3], [0, 0]),
        ("None", [0.2, 0.4], [1, 1]),
        ("None", [0.4, 0.4], [2, 2]),
    ]
    points = [(x, y) for marker, [x], [y] in (row for row in drawn if row[0] == "o")]
    arrows = [(x, y) for marker, [x], [y] in (row for row in drawn if row[0] == ">")]
    assert points == [(0.2, 0), (0.3, 1), (0.4, 2)] and arrows == [(0.4, 1), (0.4, 2)]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
    assert axes.get_xlim() == (0.0, 0.4) and axes.get_ylim() == (2.5, -0.5)
