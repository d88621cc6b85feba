import html
import html.parser
import json
import math
import re

import matplotlib
import numpy as np
import pytest

from dfpo_jax.metric import Metric
from dfpo_jax.rewards import Rewards
from dfpo_jax.rewards.clip import Clip
from dfpo_jax.rewards.flip import Flip
from dfpo_jax.training import charts
from dfpo_jax.training.curves import CURVES
from dfpo_jax.training.report import CriticSnapshot, Example, describe_rewards, write_report

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(html.parser.HTMLParser):
    """Checks that elements balance; keeps text, tags, attributes and figure headings."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []
        self.words = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        assert tag != "style" or self.open == ["html", "head"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag

    def handle_data(self, data):
        self.text += data if self.open[-1:] != ["style"] else ""

    @property
    def charts(self):
        return [value for name, value in self.attributes if name == "aria-label"]


def results(**changes):
    base = {
        "in_domain": {"before": 0.512, "after": 0.746},
        "out_of_domain": {"before": 0.213, "after": 0.187},
        "seconds": 512.0,
        "peak_memory_bytes": 3 * 2**29,
        "config": {"algorithm": "dfpo", "model": {"d_model": 48}},
        "seed": 17,
    }
    return base | changes


def full_rows(count):
    rng = np.random.default_rng(0)
    keys = (
        "rollout/reward",
        "rollout/clean_reward",
        "rollout/accuracy",
        "rollout/length",
        "policy/kl_old",
        "policy/kl",
        "policy/entropy",
        "policy/clip_fraction",
        "critic/anchor",
        "critic/dcfm",
        "critic/map",
        "critic/mean_shift",
        "critic/tail_shape",
        "critic/gradient_norm",
        "eval/in_domain/accuracy",
        "eval/out_of_domain/accuracy",
        "noise/false_positive",
        "noise/false_negative",
        "noise/top_wrong_rate",
        "rollout/explained_variance",
        "eval/critic/explained_variance",
        "eval/critic/wasserstein1",
        "eval/critic/crps",
        "eval/critic/spread",
        "eval/critic/correlation",
        "time/iteration_seconds",
    )
    return [{"step": s} | {k: float(rng.uniform(0.2, 0.8)) for k in keys} for s in range(count)]


def snapshot(count=6, flow=True, prompts=None):
    rng = np.random.default_rng(1)
    quantiles = np.sort(rng.normal(size=(count, 16)), axis=1).astype(np.float32)
    observed = rng.normal(size=(count, 8)).astype(np.float32) + np.arange(count)[::-1, None]
    times = np.linspace(0, 1, 17)[:, None, None]
    paths = (1 - times) * np.sort(rng.normal(size=16)) + times * quantiles if flow else None
    prompts = [f"<p>{i}&+1=" for i in range(count)] if prompts is None else prompts
    return CriticSnapshot(prompts, quantiles, observed, paths)


def page(tmp_path, **changes):
    options = {
        "title": "dfpo on <chain> & sum",
        "results": results(),
        "rewards": "",
        "rows": [{"step": 5}],
        "described": {},
        "examples": [],
        "snapshot": None,
    }
    path = tmp_path / "report.html"
    write_report(path, **(options | changes))
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    return Page(path.read_text(encoding="utf-8"))


def test_headline_table_and_facts_hold_the_figures(tmp_path):
    words = page(tmp_path).words
    assert words.startswith(
        "dfpo on <chain> & sum dfpo on <chain> & sum 51.2% → 74.6% +23.4 points"
    )
    assert "In-domain51.2%74.6%+23.4 points" in words
    assert "Out-of-domain21.3%18.7%\u22122.6 points" in words
    for fact in ("Iterations5", "Time8 min 32 s", "Peak memory1.50 GiB", "Seed17"):
        assert fact in words


@pytest.mark.parametrize(
    "before,after,expected",
    [
        (0.5, 0.5, "±0.0 points"),
        (0.5, 0.50001, "±0.0 points"),
        (0.0, 1.0, "+100.0 points"),
        (0.5, math.nan, "50.0% → not measured not measured"),
        (None, 0.25, "not measured → 25.0% not measured"),
    ],
)
def test_differences(tmp_path, before, after, expected):
    changed = results(in_domain={"before": before, "after": after})
    assert expected in page(tmp_path, results=changed).words


@pytest.mark.parametrize(
    "seconds,expected",
    [(3.21, "3.2 s"), (60, "1 min 0 s"), (3599.7, "1 h 0 min"), (9000, "2 h 30 min")],
)
def test_durations(tmp_path, seconds, expected):
    assert f"Time{expected}Peak" in page(tmp_path, results=results(seconds=seconds)).words


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    rows = full_rows(1500)
    write_report(
        path,
        title="all",
        results=results(),
        rewards="rewards were clipped at 1",
        rows=rows,
        described={},
        examples=[Example(f"{i}+1=", f"{i + 1}", "7", f"{i + 1}", False, True) for i in range(14)],
        snapshot=snapshot(),
    )
    return path.read_text(encoding="utf-8")


def test_everything_is_drawn_once(everything):
    parsed = Page(everything)
    titles = [c.title for c in CURVES]
    found = [next(t for t in titles if x.startswith(t)) for x in parsed.charts[: len(titles)]]
    assert found == titles
    states = parsed.charts[len(titles) :]
    assert len(states) == 8
    assert "Not measured" not in parsed.words
    assert "anchor" in parsed.words and "gradient norm" not in parsed.words


def test_one_small_file_without_addresses_scripts_or_clashing_ids(everything):
    assert len(everything.encode()) < 1.5e6
    assert "http" not in everything and "//" not in re.sub(r"\s//\s", "", everything)
    parsed = Page(everything)
    assert not {"script", "link", "img", "iframe", "object"} & set(parsed.tags)
    ids = [value for name, value in parsed.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    references = [v for name, v in parsed.attributes if name == "href"]
    references += [f"#{x}" for x in re.findall(r"url\(#(\w+)\)", everything)]
    assert references and {r[1:] for r in references} <= set(ids)
    assert "@import" not in everything and "src=" not in everything


def test_colours_come_from_the_theme_alone(everything):
    style, body = everything.split("</style>")
    assert re.findall(r"(?:fill|stroke|color): ?(#\w+|black|white)", body) == []
    for number, sides in enumerate(charts.THEME.values()):
        assert all(f"--c{number}: {colour};" in style for colour in sides)
        assert f"var(--c{number})" in everything
    assert "prefers-color-scheme: dark" in style


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


@pytest.mark.parametrize("side,card", [(0, "#f6f7f9"), (1, "#1e2126")])
def test_lines_and_text_contrast_with_both_pages(everything, side, card):
    assert f"--card: {card};" in everything
    for number, colours in enumerate(list(charts.THEME.values())[:7]):
        bright, dim = sorted([luminance(colours[side]), luminance(card)], reverse=True)
        needed = 4.5 if number >= 5 else 3.0  # text, else lines
        assert (bright + 0.05) / (dim + 0.05) >= needed, colours[side]


def test_examples_are_escaped_marked_and_at_most_twelve(tmp_path):
    bad = "<script>alert('x')</script>"
    examples = [Example(bad, "<b>4", "", f"</td>{bad}", False, True)]
    examples += [Example(f"item {i}", "1", "1", "2", True, False) for i in range(20)]
    parsed = page(tmp_path, examples=examples)
    assert "script" not in parsed.tags
    assert f"{bad}<b>4empty ✗ wrong</td>{bad} ✓ right" in parsed.words
    assert "item 01 ✗" not in parsed.words and "item 011 ✓ right2 ✗ wrong" in parsed.words
    assert parsed.words.count("✓ right") == parsed.words.count("✗ wrong") == 12
    assert "item 1011" in parsed.words and "item 1111" not in parsed.words


@pytest.mark.parametrize("rows", [[], [{"step": 0}], [{"step": 3, "rollout/reward": math.nan}]])
def test_without_any_curve_the_report_says_so(tmp_path, rows):
    parsed = page(tmp_path, rows=rows)
    assert parsed.charts == []
    note = "; ".join(curve.title for curve in CURVES)
    assert f"Not measured in this run: {note}." in parsed.words
    assert "this run kept no predictions of a critic" in parsed.words
    assert "No examples were kept" in parsed.words


def test_only_what_was_measured_is_drawn(tmp_path):
    rows = [
        {"step": 0, "eval/in_domain/accuracy": 0.5, "policy/entropy": math.nan},
        {"step": 1, "rollout/reward": 0.5, "policy/entropy": math.inf},
        {"step": 2, "rollout/reward": math.nan, "policy/kl_old": 0.0},
    ]
    parsed = page(tmp_path, rows=rows)
    drawn = [label.split(" in ")[0] for label in parsed.charts]
    assert drawn == ["Reward", "Accuracy", "KL divergence of the policy"]
    note = parsed.words.split("Not measured in this run: ")[1]
    assert note.startswith(
        "Reward (clean); Accuracy (training, sampled); Accuracy (held out, out-of-domain); "
        "KL divergence of the policy (to the start); Policy entropy; Clipped updates;"
    )


def test_prompts_of_the_critic_are_spread_by_mean_return_and_escaped(tmp_path):
    parsed = page(tmp_path, snapshot=snapshot(10))
    shown = re.findall(r"<p>(\d)&\+1=", parsed.words)
    assert shown == ["9", "6", "3", "0"]  # observed means fall with the index
    assert len(parsed.charts) == 8
    assert "8 sampled responses" in parsed.words


@pytest.mark.parametrize("count", [0, 1, 3])
def test_few_prompts_and_no_flow(tmp_path, count):
    parsed = page(tmp_path, rows=[], snapshot=snapshot(count, flow=False))
    assert len(parsed.charts) == count
    assert ("The flow has no paths to show" in parsed.words) == (count > 0)


def test_nan_and_constant_predictions_are_drawn(tmp_path):
    broken = CriticSnapshot(
        ["a", "b"],
        np.stack([np.full(4, np.nan), np.full(4, 0.5)]),
        np.stack([np.array([np.nan, 1.0]), np.full(2, 0.5)]),
        np.full((17, 2, 4), np.nan),
    )
    assert len(page(tmp_path, rows=[], snapshot=broken).charts) == 4


def test_far_outliers_are_counted_not_drawn_to_scale(tmp_path):
    observed = np.append(np.linspace(0, 1, 15), 500.0)
    _, beyond = charts.draw_distributions(np.linspace(0, 1, 16), observed)
    assert beyond == 1
    state = CriticSnapshot(["a"], np.linspace(0, 1, 16)[None], observed[None], None)
    words = page(tmp_path, rows=[], snapshot=state).words
    assert "1 of 16 observed returns lie beyond the axis" in words


def test_rewards_in_words(tmp_path):
    chain = Rewards(flip=Flip(false_negative=0.125), clip=Clip(1.0)).build((0.0, 1.0))
    changed = (
        "Training rewards were changed on purpose: 12.5% of right responses were rewarded as "
        "wrong; rewards were clipped at \u00b11."
    )
    assert describe_rewards(chain.words) == changed
    untouched = "Training rewards were left as the verifier gave them."
    assert describe_rewards(Rewards().build((0.0, 1.0)).words) == untouched
    ending = " Accuracies above are on clean rewards. Learning curves"
    assert f"Rewards. {changed}{ending}" in page(tmp_path, rewards=chain.words).words
    assert f"Rewards. {untouched}{ending}" in page(tmp_path).words


def test_a_chart_says_what_its_series_mean(tmp_path):
    known = {
        "policy/entropy": Metric("policy/entropy", "In `nats`, <b>each</b>.", "x", "Low.", "Wait."),
        "rollout/length": Metric("rollout/length", "Tokens."),
    }
    rows = [{"step": 1, "policy/entropy": 0.5}]
    parsed = page(tmp_path, rows=rows, described=known)
    assert parsed.tags.count("details") == 2  # the other one holds the configuration
    assert "policy/entropyIn nats, <b>each</b>. Healthy: Low. Otherwise: Wait." in parsed.words
    assert "Tokens." not in parsed.words
    assert page(tmp_path, rows=rows, described={}).tags.count("details") == 1


def test_the_words_of_a_link_of_the_users_own_are_escaped(tmp_path):
    parsed = page(tmp_path, rewards="<script>x</script> changed them")
    assert "script" not in parsed.tags and "<script>x</script> changed them." in parsed.words


def test_configuration_is_whole_and_escaped(tmp_path):
    config = {"task": {"prompt": "</pre><script>", "sizes": [1, 2]}, "rewards": {}}
    parsed = page(tmp_path, results=results(config=config))
    assert json.loads(parsed.text.split("All settings of this run")[1]) == config


def test_the_callers_matplotlib_is_left_alone(tmp_path):
    with matplotlib.rc_context({"axes.edgecolor": "#123456", "font.family": "monospace"}):
        before = dict(matplotlib.rcParams)
        write_report(
            tmp_path / "report.html",
            title="",
            results=results(),
            rewards="",
            rows=full_rows(3),
            described={},
            examples=[],
            snapshot=None,
        )
        assert dict(matplotlib.rcParams) == before
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "#123456" not in text
    assert set(re.findall(r"font-family: ([^;\"]*)", text)) == {
        "system-ui, sans-serif",
        "ui-monospace, Menlo, Consolas, monospace",
    }


@pytest.mark.parametrize(
    "change,name",
    [
        ({"quantiles": np.zeros((2, 4))}, "quantiles"),
        ({"observed": np.zeros(3)}, "observed"),
        ({"trajectories": np.zeros((3, 17, 4))}, "trajectories"),
    ],
)
def test_a_snapshot_checks_its_shapes(change, name):
    fields = {
        "prompts": ["a", "b", "c"],
        "quantiles": np.zeros((3, 4)),
        "observed": np.zeros((3, 2)),
        "trajectories": np.zeros((17, 3, 4)),
    }
    CriticSnapshot(**fields)
    with pytest.raises(ValueError, match=f"{name} has shape"):
        CriticSnapshot(**(fields | change))
