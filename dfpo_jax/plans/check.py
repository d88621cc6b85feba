"""Checks a plan of the user's own, once before training and whenever it collects."""

import dataclasses
import itertools
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dfpo_jax.plans.interface import Draw, Drawn, Plan
from dfpo_jax.settings import call_custom
from dfpo_jax.tasks.base import Item
from dfpo_jax.types import Rollout, rollout_of

_PROMPTS = 4
_MOST_ROUNDS = 250  # for each prompt; a plan that draws more is taken not to end
_SHOWN = 200  # characters of a wrong value in a message


def check_plan(plan: Any, name: str, samples: int) -> None:
    """See that a plan keeps the contract of `Plan`, by a run on zeros.

    Args:
      plan: what the user's class built.
      name: of that class, "module:Class".
      samples: responses per prompt.

    Raises:
      ValueError: it is no `Plan`, depends on more than what it draws, or its function does what
        `guarded` refuses; one line that names the class, the function and what is expected.
    """
    if not isinstance(plan, Plan) or not callable(plan.collect):
        raise ValueError(
            f"{name}: build returned {plan if isinstance(plan, Plan) else type(plan).__name__}; it "
            "must return a dfpo_jax.plans.interface.Plan with a function collect"
        )
    if not isinstance(plan.gives, frozenset) or not all(isinstance(x, str) for x in plan.gives):
        raise ValueError(f"{name}: gives is {plan.gives!r}; it must be a frozenset of names")
    if plan.written is not None and not callable(plan.written):
        raise ValueError(f"{name}: written is {plan.written!r}; it must be a function or None")
    if plan.round_samples is not None and not _is_count(plan.round_samples):
        raise ValueError(
            f"{name}: round_samples is {plan.round_samples!r}; it must be None or a whole number, "
            "at least 1"
        )
    if not _is_range(plan.range):
        raise ValueError(
            f"{name}: range is {plan.range!r}; it must be None or (low, high), finite numbers in "
            "this order"
        )
    if _dry_run(plan, name, samples) != _dry_run(plan, name, samples):
        raise ValueError(
            f"{name}: collect did something else the second time; it must be a pure function of "
            "what it draws, so that a resumed run repeats it"
        )


def guarded(plan: Plan, name: str) -> Plan:
    """The plan, checked whenever it collects, so that no wrong rollout trains anything.

    What drawing itself raises, such as a failure of the verifier, passes as it is. For everything
    else `collect` raises ValueError, one line that names the class: the plan's function fails,
    draws something else than prompts, numbers its rounds otherwise than 0, 1, 2, ..., does not end
    or returns something else than it must.

    Args:
      plan: what the user's class built.
      name: of that class, "module:Class".
    """

    def collect(
        draw: Draw, prompts: Callable[[int], list[Item]], count: int, samples: int
    ) -> tuple[Drawn, dict[str, float]]:
        rounds, outside = itertools.count(), []

        def passing(call: Callable[..., Any], *inputs: Any) -> Any:
            try:
                return call(*inputs)
            except Exception as error:
                outside.append(error)
                raise

        def checked(items: Sequence[Item], each: int, round: int) -> Drawn:
            _check_round(name, items, each, round, next(rounds), count)
            return passing(draw, items, each, round)

        def given(items: Sequence[Item], texts: Sequence[str]) -> Drawn:
            return passing(draw.given, items, texts)

        def first(number: int) -> list[Item]:
            if not _is_count(number):
                raise ValueError(
                    f"{name}: collect asked for {number!r} prompts; it must be a whole number, at "
                    "least 1"
                )
            return passing(prompts, number)

        def run() -> Any:
            try:
                return None, plan.collect(Draw(checked, given), first, count, samples)
            except Exception as error:
                if any(error is one for one in outside):
                    return error, None
                raise

        error, found = call_custom(name, "collect", run)
        if error is not None:
            raise error
        drawn, metrics = _parted(found, name)
        _check_rows(drawn, name, count, samples, plan.gives)
        return drawn, metrics

    return plan._replace(collect=collect)


def _is_range(x: Any) -> bool:
    """Whether a plan may have this range: None, or two finite numbers in their order."""
    if x is None:
        return True
    pair = isinstance(x, tuple) and len(x) == 2 and all(isinstance(y, numbers.Real) for y in x)
    return pair and bool(np.isfinite(x).all()) and x[0] < x[1]


def _is_count(x: Any) -> bool:
    return isinstance(x, numbers.Integral) and not isinstance(x, bool) and x >= 1


def _check_round(name: str, items: Any, each: Any, round: Any, expected: int, count: int) -> None:
    """Raise ValueError unless a round may be drawn."""
    if not isinstance(round, numbers.Integral) or round != expected:
        raise ValueError(
            f"{name}: collect drew round {round!r}; rounds must be numbered 0, 1, 2, ..., and "
            f"the next is {expected}"
        )
    if expected == _MOST_ROUNDS * count:
        raise ValueError(f"{name}: collect drew {expected} rounds for {count} prompts; it must end")
    listed = isinstance(items, Sequence) and len(items) > 0
    if not listed or not all(isinstance(item, Item) for item in items):
        raise ValueError(
            f"{name}: collect drew responses to {_shown(items)}; it must be a list of Item, at "
            "least one"
        )
    if not _is_count(each):
        raise ValueError(
            f"{name}: collect drew {each!r} responses per prompt; it must be a whole number, at "
            "least 1"
        )


def _parted(found: Any, name: str) -> tuple[Drawn, dict[str, float]]:
    """What a plan's `collect` returned, the metrics as floats in a dict of their own."""
    wanted = "it must return (Drawn, metrics), the metrics numbers by name"
    if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[0], Drawn):
        raise ValueError(f"{name}: collect returned {type(found).__name__}; {wanted}")
    drawn, metrics = found
    if not isinstance(metrics, Mapping) or not all(
        isinstance(key, str) and isinstance(value, numbers.Real) for key, value in metrics.items()
    ):
        raise ValueError(f"{name}: collect returned metrics {_shown(metrics)}; {wanted}")
    return drawn, {key: float(value) for key, value in metrics.items()}


def _shown(value: Any) -> str:
    """A value on one line, cut where it is long."""
    line = " ".join(repr(value).split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."


def _dry_run(plan: Plan, name: str, samples: int) -> tuple[list[tuple], list[int]]:
    """The rounds that a plan draws of zeros, and the prompt that each row it returns answers."""
    rounds = []

    def draw(items: Sequence[Item], each: int, round: int) -> Drawn:
        rounds.append(([item.index for item in items], each))
        return zeros(items, each)

    def given(items: Sequence[Item], texts: Sequence[str]) -> Drawn:
        rounds.append(([item.index for item in items], list(texts)))
        return zeros(items, 1)

    drawn, _ = guarded(plan, name).collect(Draw(draw, given), _prompts, _PROMPTS, samples)
    return rounds, _answered(drawn)


def _answered(drawn: Drawn) -> list[int]:
    """The prompt that each row answers."""
    return [drawn.items[group].index for group in drawn.rollout.groups]


class _AnyColumns(dict):
    """A row that holds a text in every column that a plan may name."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> str:
        return f"text of {name}"


def _prompts(count: int) -> list[Item]:
    payload = {"row": _AnyColumns()}
    return [Item(f"prompt {i}", f"answer {i}", payload, index=i) for i in range(count)]


def zeros(items: Sequence[Item], samples: int) -> Drawn:
    """Responses of one token; rewards are 0 and 1 in turn, as plans may pass over equal ones."""
    rows = len(items) * samples
    groups = np.repeat(np.arange(len(items), dtype=np.int32), samples)
    rewards = np.arange(rows, dtype=np.float32) % 2
    rollout = rollout_of(np.zeros, rows, 1, 1, samples=samples)
    ones = np.ones((rows, 1), np.float32)
    rollout = rollout.replace(
        prompt_mask=ones, mask=ones, rewards=rewards, clean_rewards=rewards, groups=groups
    )
    return Drawn(rollout, [""] * rows, list(items))


def _check_rows(drawn: Drawn, name: str, count: int, samples: int, gives: frozenset[str]) -> None:
    """Raise ValueError unless there is a row for each of `samples` responses to `count` prompts."""
    rollout, rows = drawn.rollout, count * samples
    wanted = f"there must be {rows}, for {count} prompts with {samples} responses each"
    if not isinstance(rollout, Rollout):
        raise ValueError(
            f"{name}: collect returned a rollout of type {type(rollout).__name__}; it must be a "
            "dfpo_jax.types.Rollout"
        )
    for field, kind in (("texts", str), ("items", Item)):
        values = getattr(drawn, field)
        if not isinstance(values, Sequence) or not all(isinstance(x, kind) for x in values):
            raise ValueError(
                f"{name}: collect returned {field} {_shown(values)}; it must be a list of "
                f"{kind.__name__}"
            )
    if len(drawn.texts) != rows:
        raise ValueError(f"{name}: collect returned {len(drawn.texts)} texts; {wanted}")
    for field, value in _arrays(rollout, gives).items():
        if np.shape(value)[:1] != (rows,):
            raise ValueError(
                f"{name}: collect returned rollout.{field} of shape {np.shape(value)}; {wanted}, "
                "along its first axis"
            )
    groups = np.asarray(rollout.groups)
    inside = groups.ndim == 1 and np.issubdtype(groups.dtype, np.integer) and groups.min() >= 0
    if not inside or groups.max() >= len(drawn.items):
        raise ValueError(
            f"{name}: collect returned groups {_shown(groups.tolist())}; they must be "
            f"indices of the {len(drawn.items)} items"
        )
    if "groups" not in gives:
        return
    together = groups.reshape(count, samples)
    if samples < 2 or rollout.samples != samples or not (together == together[:, :1]).all():
        raise ValueError(
            f"{name}: gives has 'groups', and collect returned groups {_shown(groups.tolist())} "
            f"with samples={rollout.samples}; the {samples} rows of a prompt must be consecutive, "
            "at least 2 of them"
        )


def _arrays(rollout: Rollout, gives: frozenset[str]) -> dict[str, Any]:
    """The fields that a rollout must have, an array with a row per response each."""
    fields = [f for f in dataclasses.fields(rollout) if f.default is dataclasses.MISSING]
    found = {field.name: getattr(rollout, field.name) for field in fields}
    if "pool" in gives:
        found["baseline"] = rollout.baseline
    if "expert" in gives:
        for name in ("tokens", "mask"):
            found[f"expert.{name}"] = getattr(rollout.expert, name, None)
    return found
