"""The report of a study, from made-up rows."""

import json
import math
import re

import numpy as np
import pytest
import tiny_study
from _study import grid, report, results, statistics, summary, tables


@pytest.fixture(scope="module")
def rows():
    """ppo loses its gain of 40 points evenly, grpo at once; its second setting is chosen."""
    study = grid.comparison(tiny_study.get_config())
    made = []
    after = {("ppo", 0.0): 0.9, ("ppo", 0.2): 0.8, ("ppo", 0.4): 0.6}
    after |= {("grpo", 0.0): 0.9, ("grpo", 0.2): 0.7, ("grpo", 0.4): 0.5, ("rloo", 0.4): 0.6}
    for name in ("ppo", "grpo", "rloo"):
        for cell in study.sweep_cells(name, "binary"):
            good = (cell.setting == "0.002") == (name == "grpo")
            end = after.get((name, 0.0), 0.5) + 0.02 * cell.seed
            made.append(tiny_study.made_row(cell, end if good else 0.1))
        chosen = "0.002" if name == "grpo" else "0.001"
        for cell in study.noisy_cells(name, "binary", chosen):
            end = after[name, cell.level] + 0.02 * cell.seed
            made.append(tiny_study.made_row(cell, round(end, 6)))
    return made


def test_settings_are_chosen_by_training_accuracy_and_only_they_count(rows):
    made = summary.summarize(rows, "ppo")
    assert made.settings["binary", "grpo"] == (
        {"0.001": pytest.approx(0.1), "0.002": pytest.approx(0.91)},
        "0.002",
    )
    assert made.settings["binary", "ppo"][1] == "0.001"
    assert made.accuracy("ppo", "binary", 0.0, "in") == {0: 0.9, 1: 0.92}
    assert made.algorithms == ["ppo", "grpo", "rloo"] and made.kinds == {"flip": "binary"}


def test_figures_are_those_of_the_statistics(rows):
    made = summary.summarize(rows, "ppo")
    gains = np.array([[0.4, 0.3, 0.1], [0.42, 0.32, 0.12]])
    np.testing.assert_allclose(made.gains("ppo", "flip"), gains)
    found = made.tolerance("ppo", "flip")
    assert found == statistics.tolerance_interval([0.0, 0.2, 0.4], made.gains("ppo", "flip"))
    assert made.tolerance("grpo", "flip").value == pytest.approx(0.2 * 0.41 / 0.4)
    assert made.tolerance("rloo", "flip") is None  # it has one level
    difference, p = made.compared("grpo", "flip", 0.2)
    assert difference == pytest.approx(-0.1) and p == 0.5
    assert math.isnan(made.compared("ppo", "flip", 0.2)[1])
    ratio, rival, value = made.ratio("flip", ["grpo", "dvpo"])
    assert rival == "grpo" and ratio == pytest.approx(found.value / value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (statistics.Interval(0.25, 0.2, 0.31, 0.0), "0.25 [0.2, 0.31]"),
        (statistics.Interval(math.inf, 0.3, math.inf, 0.0), "> 0.4 [0.3, > 0.4]"),
        (statistics.Interval(0.1, 0.1, 0.2, 0.25), "0.1 [0.1, 0.2; no gain in 25%]"),
        (statistics.Interval(math.nan, math.nan, math.nan, 1.0), "no gain"),
        (None, ""),
    ],
)
def test_tolerances_in_words(value, text):
    assert tables._tolerance(value, 0.4) == text


def test_endless_tolerances_have_no_ratio():
    assert tables._ratio((math.nan, "grpo", math.inf)) == "none (grpo)"
    assert tables._ratio((math.inf, "grpo", 0.3)) == "above all levels (grpo 0.3)"
    assert tables._ratio((1.5, "grpo", 0.2)) == "1.50 (grpo)"


def test_markdown_has_every_table_in_order(rows):
    text = report.markdown(rows, "ppo", ["grpo"])
    assert text.startswith(f"{len(rows)} cells, {len(rows) * 30 / 3600:.1f} hours of workers")
    assert "dfpo_jax 1; JAX 2; commit abc" in text
    titles = re.findall(r"### (.*)", text)
    assert titles == ["Tolerance", "Without noise", "Accuracy under flip noise", "Settings tried"]
    lines = text.splitlines()
    heads = [line for line in lines if re.fullmatch(r"\|(---\|)+", line)]
    assert len(heads) == 4
    cells = ["71.0 / 71.0 / 61.0 (−10.0, p 0.5)", "51.0 / 51.0 / 41.0 (−10.0, p 0.5)"]
    assert f"| grpo | {' | '.join(cells)} |" in lines
    assert "| ppo | binary | 50.0 → 91.0 | 50.0 → 91.0 | 40.0 → 81.0 |  | 20 |" in lines
    assert "| grpo | binary | 0.001: 10.0, 0.002: 91.0 | 0.002 |" in lines


def test_rows_without_clean_ones_make_tables_of_levels_alone(rows):
    noisy = [row for row in rows if row["noise"] == "flip"]
    titles = re.findall(r"### (.*)", report.markdown(noisy, "ppo", ["grpo"]))
    assert titles == ["Accuracy under flip noise"]
    text = report.markdown(noisy, "ppo", ["grpo"])
    assert "| grpo | 71.0 / 71.0 / 61.0 (−10.0, p 0.5) |" in text


def test_the_page_stands_alone(tmp_path, rows):
    path = tmp_path / "compare.html"
    report.write(path, "A <study>", rows, "ppo", ["grpo"])
    page = path.read_text(encoding="utf-8")
    assert "<h1>A &lt;study&gt;</h1>" in page and page.count("<svg") >= 3
    assert "level of flip noise at which half of the gain is lost" in page
    assert not re.search(r"https?://|<script|<link|src=|href=\"(?!#)", page)
    assert "91.0" in page and path.with_suffix(".md").read_text().startswith("# A <study>")
    assert list(tmp_path.glob("*.tmp")) == []


def test_without_the_reference_there_is_no_report(rows):
    with pytest.raises(ValueError, match="'dfpo', of which there is no row; there are grpo, ppo"):
        report.markdown(rows, "dfpo", [])
    with pytest.raises(ValueError, match="there are no rows"):
        report.markdown([], "dfpo", [])


def test_rows_are_small_and_of_one_cell_the_last_counts(rows):
    assert max(len(json.dumps(row, separators=(",", ":"))) for row in rows) < 600
    again = {**rows[0], "cell": "f" * 12}
    assert results.newest([*rows, again])[0] == again
    assert len(results.newest([*rows, again])) == len(rows)
