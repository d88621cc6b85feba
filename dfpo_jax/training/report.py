"""The report at the end of a run: one HTML file that opens offline, on any screen."""

import html
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Template
from typing import Any

import numpy as np

from dfpo_jax.metric import Metric
from dfpo_jax.training import charts
from dfpo_jax.training.curves import CURVES, Curve
from dfpo_jax.training.page import write_page

_STATES, _EXAMPLES = 4, 12
_SETS = {"in_domain": "In-domain", "out_of_domain": "Out-of-domain"}


@dataclass(frozen=True)
class CriticSnapshot:
    """What the critic predicts at n prompts, and what came of them.

    Attributes:
      prompts: n texts.
      quantiles: [n, M] predicted return quantiles at the prompt's state, in units of raw reward.
      observed: [n, k] observed (noisy) returns of k sampled responses.
      trajectories: [17, n, M] positions of the flow, in the units that the critic learns in, at
        times 0, 1/16, .., 1, by ascending noise quantile; None for a critic without a flow.
    """

    prompts: list[str]
    quantiles: np.ndarray
    observed: np.ndarray
    trajectories: np.ndarray | None

    def __post_init__(self):
        """Check the shapes against each other."""
        count = len(self.prompts)
        for name, axis in (("quantiles", 0), ("observed", 0), ("trajectories", 1)):
            value = getattr(self, name)
            if value is None and name == "trajectories":
                continue
            if np.ndim(value) != 2 + axis or np.shape(value)[axis] != count:
                raise ValueError(
                    f"{name} has shape {np.shape(value)}; it must have {2 + axis} axes and "
                    f"{count} entries, as many as prompts, along axis {axis}"
                )


@dataclass(frozen=True)
class Example:
    """A held-out item and the responses to it before and after training."""

    prompt: str
    answer: str
    before: str
    after: str
    before_correct: bool
    after_correct: bool


def write_report(
    path: str | os.PathLike,
    *,
    title: str,
    results: Mapping[str, Any],
    rewards: str,
    rows: Sequence[Mapping[str, float]],
    described: Mapping[str, Metric],
    examples: Sequence[Example],
    snapshot: CriticSnapshot | None,
) -> None:
    """Write the report, whole or not at all.

    Args:
      path: the HTML file.
      title: heading.
      results: "in_domain" and, where the run has it, "out_of_domain", each with the accuracy in
        [0, 1] "before" and "after" on clean held-out items (None or NaN where not measured);
        "seconds", "peak_memory_bytes", "config" (nested) and "seed".
      rewards: the `words` of the reward chain; "" where rewards stay as they are.
      rows: metrics by iteration; keys may be missing and values NaN.
      described: what metrics mean, by name; one that is drawn may have no description.
      examples: the first 12 are shown.
      snapshot: up to 4 of its prompts are shown, spread evenly from the lowest to the highest mean
        observed return; None for a run without a critic.
    """
    body = _BODY.substitute(
        title=html.escape(title),
        headline=_headline(results),
        facts=_facts(results, rows),
        rewards=_rewards(rewards),
        curves=_curves(rows, described),
        critic=_critic(snapshot),
        examples=_examples(examples),
        config=html.escape(json.dumps(results["config"], indent=2, default=str)),
    )
    write_page(path, title, body)


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _percent(value: float | None) -> str:
    return f"{100 * value:.1f}%" if _known(value) else "not measured"


def _difference(before: float | None, after: float | None) -> str:
    if not (_known(before) and _known(after)):
        return "not measured"
    points = round(100 * (after - before), 1)
    sign = "+" if points > 0 else "\u2212" if points < 0 else "\u00b1"
    return f"{sign}{abs(points):.1f} points"


def _headline(results: Mapping[str, Any]) -> str:
    main = results["in_domain"]
    before, after = main["before"], main["after"]
    lines = []
    for key, name in _SETS.items():
        if key not in results:
            continue
        pair = results[key]["before"], results[key]["after"]
        cells = [_percent(pair[0]), _percent(pair[1]), f"<b>{_difference(*pair)}</b>"]
        cells = "".join(f"<td>{cell}</td>" for cell in cells)
        lines.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
    return (
        f'<p class="headline"><span>{_percent(before)} <span class="arrow">→</span> '
        f'{_percent(after)}</span> <span class="points">{_difference(before, after)}</span></p>'
        '<p class="note">Share of clean held-out in-domain items solved at the first, greedy '
        "attempt, before and after training.</p>"
        '<table class="figures"><thead><tr><th scope="col">Accuracy on clean held-out items</th>'
        '<th scope="col">Before</th><th scope="col">After</th><th scope="col">Difference</th>'
        f"</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    )


def _duration(seconds: float | None) -> str:
    if not _known(seconds):
        return "not measured"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _facts(results: Mapping[str, Any], rows: Sequence[Mapping[str, float]]) -> str:
    memory = results["peak_memory_bytes"]
    facts = {
        "Iterations": str(max((row["step"] for row in rows), default="not measured")),
        "Time": _duration(results["seconds"]),
        "Peak memory": f"{memory / 2**30:.2f} GiB" if _known(memory) else "not measured",
        "Seed": str(results["seed"]),
    }
    items = "".join(f"<div><dt>{k}</dt><dd>{html.escape(v)}</dd></div>" for k, v in facts.items())
    return f'<dl class="facts">{items}</dl>'


def describe_rewards(words: str) -> str:
    """What became of the verifier's rewards, in a sentence, from the `words` of the chain."""
    if not words:
        return "Training rewards were left as the verifier gave them."
    return f"Training rewards were changed on purpose: {words}."


def _rewards(words: str) -> str:
    text = html.escape(describe_rewards(words))
    return f"<p><b>Rewards.</b> {text} Accuracies above are on clean rewards.</p>"


def _curves(rows: Sequence[Mapping[str, float]], described: Mapping[str, Metric]) -> str:
    cards, missing = [], []
    for curve in CURVES:
        chart, absent = charts.draw_curve(curve, rows)
        if chart is None:
            missing.append(curve.title)
        else:
            missing += [f"{curve.title} ({label})" for label in absent]
            meaning = _meaning(curve, rows, described)
            cards.append(f"<figure><h3>{curve.title}</h3>{chart}{meaning}</figure>")
    note = ""
    if missing:
        note = f'<p class="note">Not measured in this run: {html.escape("; ".join(missing))}.</p>'
    if not cards:
        return note
    explanation = (
        '<p class="note">Where points are many, thin lines are the values of single iterations '
        "and thick ones a running mean over a twentieth of them.</p>"
    )
    return f'{explanation}<div class="charts">{"".join(cards)}</div>{note}'


def _meaning(
    curve: Curve, rows: Sequence[Mapping[str, float]], described: Mapping[str, Metric]
) -> str:
    """What the series of a chart mean, behind a line that opens it."""
    drawn = {key for row in rows for key in row}
    names = [key for key in charts.series_of(curve, rows) if key in drawn and key in described]
    entries = "".join(
        f"<dt><code>{html.escape(x)}</code></dt><dd>{_words(described[x])}</dd>" for x in names
    )
    return f"<details><summary>What it means</summary><dl>{entries}</dl></details>" if names else ""


def _words(metric: Metric) -> str:
    """A description as HTML, in which backticks become code."""
    parts = {"": metric.meaning, "Healthy: ": metric.healthy, "Otherwise: ": metric.advice}
    text = " ".join(f"{name}{words}" for name, words in parts.items() if words)
    pieces = html.escape(text).split("`")
    pieces[1::2] = [f"<code>{piece}</code>" for piece in pieces[1::2]]
    return "".join(pieces)


def _critic(snapshot: CriticSnapshot | None) -> str:
    if snapshot is None or not len(snapshot.prompts):
        return '<p class="note">Not measured: this run kept no predictions of a critic.</p>'
    order = np.argsort(np.nan_to_num(np.mean(snapshot.observed, axis=1)), kind="stable")
    spread = np.linspace(0, len(order) - 1, min(len(order), _STATES)).round().astype(int)
    cards = [_state(snapshot, int(order[place])) for place in spread]
    flow = (
        "Beside it, the paths along which the value flow carries noise to that return."
        if snapshot.trajectories is not None
        else "The flow has no paths to show: this critic predicts the distribution directly."
    )
    return (
        f'<p class="note">{len(cards)} of {len(order)} held-out prompts, spread from the lowest '
        "to the highest mean return. Steps: the distribution the critic predicts before the first "
        f"token, and that of the (noisy) returns of {snapshot.observed.shape[1]} sampled "
        f"responses. {flow}</p>" + "".join(cards)
    )


def _state(snapshot: CriticSnapshot, index: int) -> str:
    quantiles, observed = snapshot.quantiles[index], snapshot.observed[index]
    chart, beyond = charts.draw_distributions(np.asarray(quantiles), np.asarray(observed))
    means = f"mean return predicted {np.mean(quantiles):.2f}, observed {np.mean(observed):.2f}"
    means = means.replace("-", "\u2212")
    if beyond:
        means += f"; {beyond} of {observed.size} observed returns lie beyond the axis"
    plots = f"<figure><h4>Return at this state</h4>{chart}</figure>"
    if snapshot.trajectories is not None:
        paths = charts.draw_trajectories(np.asarray(snapshot.trajectories)[:, index])
        plots += f"<figure><h4>Trajectories of the flow</h4>{paths}</figure>"
    return (
        f'<section class="state"><h3><code>{html.escape(snapshot.prompts[index])}</code></h3>'
        f'<p class="note">{means}</p><div class="charts">{plots}</div></section>'
    )


def _verdict(text: str, correct: bool, label: str) -> str:
    kind, mark = ("right", "✓ right") if correct else ("wrong", "✗ wrong")
    shown = f"<code>{html.escape(text)}</code>" if text else "<i>empty</i>"
    return f'<td data-label="{label}">{shown} <span class="{kind}">{mark}</span></td>'


def _examples(examples: Sequence[Example]) -> str:
    if not examples:
        return '<p class="note">No examples were kept.</p>'
    lines = []
    for item in examples[:_EXAMPLES]:
        lines.append(
            f'<tr><td data-label="Prompt"><code>{html.escape(item.prompt)}</code></td>'
            f'<td data-label="Answer"><code>{html.escape(item.answer)}</code></td>'
            f"{_verdict(item.before, item.before_correct, 'Before')}"
            f"{_verdict(item.after, item.after_correct, 'After')}</tr>"
        )
    heads = "".join(
        f'<th scope="col">{h}</th>' for h in ("Prompt", "Right answer", "Before", "After")
    )
    return (
        f'<table class="examples"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table>"
    )


_BODY = Template("""<h1>$title</h1>
$headline
$facts
$rewards
<h2>Learning curves</h2>
$curves
<h2>What the critic predicts</h2>
$critic
<h2>Before and after</h2>
$examples
<h2>Configuration</h2>
<details><summary>All settings of this run</summary><pre>$config</pre></details>""")
