"""Checks a plan of the user's own with made-up responses, before training."""

import dataclasses
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dfpo_jax.plans.interface import Drawn, Plan
from dfpo_jax.settings import call_custom
from dfpo_jax.tasks.base import Item
from dfpo_jax.types import Rollout

_PROMPTS = 4
_MOST_ROUNDS = 1000  # a plan that draws more for four prompts is taken not to end


def check_plan(plan: Any, name: str, samples: int) -> None:
    """See that a plan keeps the contract of `Plan`, by a run on zeros.

    Args:
      plan: what the user's class built.
      name: of that class, "module:Class".
      samples: responses per prompt.

    Raises:
      ValueError: it is no `Plan`, its function fails, depends on more than what it draws, numbers
        its rounds otherwise than 0, 1, 2, ... or returns something else than it must; one line that
        names the class, the function and what is expected.
    """
    if not isinstance(plan, Plan) or not callable(plan.collect):
        raise ValueError(
            f"{name}: build returned {plan if isinstance(plan, Plan) else type(plan).__name__}; it "
            "must return a dfpo_jax.plans.interface.Plan with a function collect"
        )
    if not isinstance(plan.gives, frozenset) or not all(isinstance(x, str) for x in plan.gives):
        raise ValueError(f"{name}: gives is {plan.gives!r}; it must be a frozenset of names")
    rounds, drawn = _dry_run(plan, name, samples)
    _check_rows(drawn, name, samples, "groups" in plan.gives)
    again, same = _dry_run(plan, name, samples)
    if rounds != again or _answered(drawn) != _answered(same):
        raise ValueError(
            f"{name}: collect did something else the second time; it must be a pure function of "
            "what it draws, so that a resumed run repeats it"
        )


def _dry_run(plan: Plan, name: str, samples: int) -> tuple[list[tuple], Drawn]:
    """The rounds that a plan draws, and what it makes of them."""
    rounds = []

    def draw(items: Sequence[Item], each: int, round: int) -> Drawn:
        if round != len(rounds):
            raise ValueError(
                f"{name}: collect drew round {round!r}; rounds must be numbered 0, 1, 2, ..., and "
                f"the next is {len(rounds)}"
            )
        if len(rounds) == _MOST_ROUNDS:
            raise ValueError(
                f"{name}: collect drew {_MOST_ROUNDS} rounds for {_PROMPTS} prompts; it must end"
            )
        rounds.append(([item.index for item in items], each))
        return _zeros(items, each)

    found = call_custom(name, "collect", lambda: plan.collect(draw, _prompts, _PROMPTS, samples))
    wanted = "it must return (Drawn, metrics), the metrics numbers by name"
    if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[0], Drawn):
        raise ValueError(f"{name}: collect returned {type(found).__name__}; {wanted}")
    drawn, metrics = found
    if not isinstance(metrics, Mapping) or not all(
        isinstance(key, str) and isinstance(value, numbers.Real) for key, value in metrics.items()
    ):
        raise ValueError(f"{name}: collect returned metrics {metrics!r}; {wanted}")
    return rounds, drawn


def _answered(drawn: Drawn) -> list[int]:
    """The prompt that each row answers."""
    return [drawn.items[group].index for group in drawn.rollout.groups]


def _prompts(count: int) -> list[Item]:
    return [Item(f"prompt {i}", "", index=i) for i in range(count)]


def _zeros(items: Sequence[Item], samples: int) -> Drawn:
    """Responses of one token; rewards are 0 and 1 in turn, as plans may pass over equal ones."""
    rows = len(items) * samples
    ids, ones = np.zeros((rows, 1), np.int32), np.ones((rows, 1), np.float32)
    rewards = np.arange(rows, dtype=np.float32) % 2
    groups = np.repeat(np.arange(len(items), dtype=np.int32), samples)
    rollout = Rollout(
        prompt_tokens=ids,
        prompt_mask=ones,
        tokens=ids,
        mask=ones,
        log_probs=np.zeros_like(ones),
        truncated=np.zeros(rows, bool),
        rewards=rewards,
        clean_rewards=rewards,
        groups=groups,
        samples=samples,
    )
    return Drawn(rollout, [""] * rows, list(items))


def _check_rows(drawn: Drawn, name: str, samples: int, grouped: bool) -> None:
    rollout, rows = drawn.rollout, _PROMPTS * samples
    wanted = f"there must be {rows}, for {_PROMPTS} prompts with {samples} responses each"
    if not isinstance(rollout, Rollout):
        raise ValueError(
            f"{name}: collect returned a rollout of type {type(rollout).__name__}; it must be a "
            "dfpo_jax.types.Rollout"
        )
    for field, kind in (("texts", str), ("items", Item)):
        values = getattr(drawn, field)
        if not isinstance(values, Sequence) or not all(isinstance(x, kind) for x in values):
            raise ValueError(
                f"{name}: collect returned {field} {values!r}; it must be a list of {kind.__name__}"
            )
    if len(drawn.texts) != rows:
        raise ValueError(f"{name}: collect returned {len(drawn.texts)} texts; {wanted}")
    for field, value in _arrays(rollout).items():
        if np.shape(value)[:1] != (rows,):
            raise ValueError(
                f"{name}: collect returned rollout.{field} of shape {np.shape(value)}; {wanted}, "
                "along its first axis"
            )
    groups = np.asarray(rollout.groups)
    inside = np.issubdtype(groups.dtype, np.integer) and groups.min() >= 0
    if not inside or groups.max() >= len(drawn.items):
        raise ValueError(
            f"{name}: collect returned groups {groups.tolist()}; they must be indices of the "
            f"{len(drawn.items)} items"
        )
    if not grouped:
        return
    together = groups.reshape(_PROMPTS, samples)
    if samples < 2 or rollout.samples != samples or not (together == together[:, :1]).all():
        raise ValueError(
            f"{name}: gives has 'groups', and collect returned groups {groups.tolist()} with "
            f"samples={rollout.samples}; the {samples} rows of a prompt must be consecutive, at "
            "least 2 of them"
        )


def _arrays(rollout: Rollout) -> dict[str, Any]:
    """The fields that every rollout has, an array with a row per response each."""
    fields = [f for f in dataclasses.fields(rollout) if f.default is dataclasses.MISSING]
    return {field.name: getattr(rollout, field.name) for field in fields}
