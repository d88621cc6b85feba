"""The glossary of metrics, made from what modules and parts declare about those that they write."""

import dataclasses
import difflib
import textwrap
from collections.abc import Iterator
from typing import NamedTuple

from dfpo_jax.algorithms import warmup
from dfpo_jax.algorithms.compose import METRICS as OF_POLICIES
from dfpo_jax.metric import Metric, metrics_of
from dfpo_jax.rollout import partial, prompts, verify
from dfpo_jax.settings import Choice
from dfpo_jax.training import (
    evaluate,
    learner,
    metrics,
    noise_metrics,
    rollout_metrics,
    speed,
    step_size,
    update,
)
from dfpo_jax.training.config import Config

_OF_RUNS = {
    "Responses and rewards": rollout_metrics.METRICS + prompts.METRICS + verify.METRICS,
    "Partial rollouts": partial.METRICS,
    "Noise of the rewards": noise_metrics.METRICS,
    "Updates": OF_POLICIES + step_size.METRICS + update.METRICS + learner.METRICS,
    "What the critic explains, and its warm-up": warmup.METRICS,
    "Evaluation": evaluate.METRICS,
    "Time": speed.METRICS + metrics.METRICS,
}
_HEAD = """# Metrics

Every metric that a run writes to metrics.jsonl, one row per iteration. Row 0 is before training. NaN is written as null.

- Losses stand without their weights. Means over an iteration's updates leave out those that were not finite.
- Means of `policy/` metrics over tokens are weighted as `objective.aggregation` says; with `constant_length` they are sums over a
  response, divided by `sampling.max_new_tokens`. Those of `critic/` metrics weigh all tokens alike.
- "Value units" are (G - mu) / s of a return G. Where the range of the rewards is known, mu is its middle and s half its width;
  elsewhere both follow the rewards that were seen. With `critic.units=asinh`, which the preset `dfpo` has, the range is that of the
  rewards without noise, and a critic learns in asinh of value units, else in them.
- `NAME=VALUE` is a setting, as in `--config.critic.units=asinh`.

Advantages and links of the reward chain write no metrics. `python tools/metrics_glossary.py` makes this file from the descriptions that
stand beside the code, and `python tools/metrics_glossary.py --explain=policy/kl_old` prints one of them.
"""  # noqa: E501


class Section(NamedTuple):
    """Metrics that one part writes, or the loop whatever the parts.

    Attributes:
      title: "Critic `flow`" for a part.
      metrics: their descriptions.
    """

    title: str
    metrics: tuple[Metric, ...]


def sections() -> Iterator[Section]:
    """All descriptions of the library, those of parts last."""
    yield from (Section(title, found) for title, found in _OF_RUNS.items())
    for choice in _choices(Config()):
        for name, part in (choice.parts | choice.added).items():
            if found := metrics_of(part):
                yield Section(f"{choice.kind.capitalize()} `{name}`", found)


def described(config: Config) -> dict[str, Metric]:
    """Descriptions of what a run may write, by name; also those of parts of the user's own."""
    found = [metric for of_run in _OF_RUNS.values() for metric in of_run]
    for choice in _choices(config):
        for part in (*choice.added.values(), choice.chosen):
            found += metrics_of(part)
    return {metric.name: metric for metric in found}


def document() -> str:
    """The glossary as Markdown; what several parts share stands under the first of them."""
    blocks, seen = [_HEAD], {}
    for title, found in sections():
        blocks.append(f"## {title}\n")
        fresh = [metric for metric in found if metric not in seen]
        for metric in fresh:
            heading = f"**`{metric.name}`**" + (f", {metric.when}" if metric.when else "")
            details = "".join(f"- {line}\n" for line in _details(metric))
            blocks += [f"{heading}\n", f"{metric.meaning}\n", *([details] if details else [])]
        for first in dict.fromkeys(seen[metric] for metric in found if metric in seen):
            names = [f"`{metric.name}`" for metric in found if seen.get(metric) == first]
            blocks.append(f"As under {first}: {', '.join(names)}.\n")
        seen |= dict.fromkeys(fresh, title)
    return "\n".join(blocks)


def explanation(name: str) -> str:
    """What a metric means, as plain text: once for each part that writes another one of its name.

    Raises:
      ValueError: no description has that name; says which are near.
    """
    titles: dict[Metric, list[str]] = {}
    for title, found in sections():
        for metric in found:
            titles.setdefault(metric, []).append(title)
    blocks = []
    for metric, where in titles.items():
        if metric.name == name:
            when = f", {metric.when}" if metric.when else ""
            lines = [f"{name} ({', '.join(where)}){when}", metric.meaning, *_details(metric)]
            blocks.append("\n".join(textwrap.fill(x, 100, subsequent_indent="  ") for x in lines))
    if not blocks:
        near = difflib.get_close_matches(name, {x.name for x in titles}, n=3, cutoff=0.4)
        nearest = f"; the nearest are {', '.join(near)}" if near else ""
        raise ValueError(f"there is no description of a metric {name!r}{nearest}")
    return "\n\n".join(blocks)


def _details(metric: Metric) -> list[str]:
    parts = {"Formula": metric.formula, "Healthy": metric.healthy, "Otherwise": metric.advice}
    return [f"{name}: {text}" for name, text in parts.items() if text]


def _choices(config: Config) -> list[Choice]:
    values = (getattr(config, item.name) for item in dataclasses.fields(config))
    return [value for value in values if isinstance(value, Choice)]
