"""Checks a link of the user's own, once before training and whenever it is applied."""

import json
import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np

from dfpo_jax.rewards.interface import Initial, Link, Range, Scored, Start
from dfpo_jax.settings import call_custom
from dfpo_jax.tasks.base import Item

_MADE_UP = tuple(Item(f"prompt {i}", f"answer {i}", index=i) for i in range(3))
_LIMIT = 8


def check_link(
    link: Any, name: str, bounds: Range | None = None, items: Sequence[Item] = ()
) -> Link:
    """See that a link keeps the contract of `Link`, by applying it to a few responses.

    Args:
      link: what the user's class built.
      name: of that class, "module:Class".
      bounds: range of the rewards that it will receive.
      items: prompts of the task, whose reference answers stand for responses; without any, three
        made-up ones with no payload.

    Returns:
      The link. What it gives during training is checked in the same way, so that no wrong reward
      trains anything.

    Raises:
      ValueError: it is no `Link`, one of its fields is wrong, one of its functions fails,
        is impure or gives something else than it must; one line that names the class, the function
        and what is expected.
    """
    _check_fields(link, name)
    guarded = _guarded(link, name)
    if bounds is not None and guarded.clean is not None:
        guarded.clean(bounds)
    if link.start is not None:  # nothing can be applied before it has begun
        _range(link, name, bounds)
        return guarded._replace(start=_guarded_start(link.start, name))
    scored = _trial(bounds, items or _MADE_UP)
    given, twice = scored.clean.copy(), []
    for _ in range(2):
        twice.append(guarded.apply(given, scored).copy())
        if not np.array_equal(given, scored.clean):
            raise ValueError(
                f"{name}: apply changed the rewards that it was given; it must return new ones"
            )
    if not np.array_equal(*twice):
        raise ValueError(
            f"{name}: apply gave two results for the same responses; random numbers must come from "
            "dfpo_jax.rewards.interface.generator"
        )
    return guarded


def _guarded(link: Link, name: str) -> Link:
    """The link, whose functions are checked whenever they are called."""
    return link._replace(
        unit=float(link.unit),
        apply=lambda rewards, scored: _applied(link, name, rewards, scored),
        range=lambda bounds: _range(link, name, bounds),
        clean=None if link.clean is None else lambda bounds: _clean(link, name, bounds),
    )


def _check_fields(link: Any, name: str) -> None:
    if not isinstance(link, Link):
        raise ValueError(
            f"{name}: build returned {type(link).__name__}; it must return a "
            "dfpo_jax.rewards.interface.Link"
        )
    for function in ("apply", "range"):
        if not callable(getattr(link, function)):
            raise ValueError(
                f"{name}: {function} is {getattr(link, function)!r}; it must be a function"
            )
    if link.clean is not None and not callable(link.clean):
        raise ValueError(f"{name}: clean is {link.clean!r}; it must be a function or None")
    if not isinstance(link.words, str):
        raise ValueError(f"{name}: words is {link.words!r}; it must be a string")
    if link.start is not None and not isinstance(link.start, Start):
        raise ValueError(
            f"{name}: start is {type(link.start).__name__}; it must be None or a "
            "dfpo_jax.rewards.interface.Start"
        )
    real = isinstance(link.unit, numbers.Real) and not isinstance(link.unit, bool)
    if not real or not 0.0 < link.unit < math.inf:
        raise ValueError(f"{name}: unit is {link.unit!r}; it must be a finite number above 0")


def _guarded_start(start: Start, name: str) -> Start:
    """The start, whose link is checked whenever it is applied."""

    def begin(made: Any, initial: Initial) -> Link:
        link = call_custom(name, "start.begin", lambda: start.begin(made, initial))
        if not isinstance(link, Link) or link.start is not None:
            raise ValueError(f"{name}: start.begin must return a Link that has no start")
        return _guarded(link, name)

    def make(initial: Initial) -> Any:
        made = call_custom(name, "start.make", lambda: start.make(initial))
        try:
            same = json.loads(json.dumps(made, allow_nan=False)) == made
        except (TypeError, ValueError):
            same = False
        if not same:
            raise ValueError(
                f"{name}: start.make returned {type(made).__name__}, which JSON does not give back "
                "as it was; it must be of dicts with strings as keys, lists, strings, finite "
                "numbers, booleans and None"
            )
        return made

    return start._replace(make=make, begin=begin)


def _trial(bounds: Range | None, items: Sequence[Item]) -> Scored:
    """The items' reference answers as responses, rewards over the whole range."""
    clean = np.linspace(*(bounds or (0.0, 1.0)), len(items), dtype=np.float32)
    texts = [item.answer for item in items]
    lengths = np.array([min(len(text), _LIMIT) for text in texts], np.float32)
    return Scored(0, 0, items, texts, lengths, _LIMIT, clean, bounds)


def _applied(link: Link, name: str, rewards: np.ndarray, scored: Scored) -> np.ndarray:
    found = call_custom(name, "apply", lambda: link.apply(rewards, scored))
    wanted = f"it must return a numpy array float32 {rewards.shape}, a reward for each response"
    if not isinstance(found, np.ndarray):
        raise ValueError(f"{name}: apply returned {type(found).__name__}; {wanted}")
    if found.dtype != np.float32 or found.shape != rewards.shape:
        raise ValueError(f"{name}: apply returned {found.dtype} {found.shape}; {wanted}")
    low, high = _range(link, name, scored.range) or (-np.inf, np.inf)
    sound = np.isfinite(found) & (low <= found) & (found <= high)
    if not sound.all():
        row = int(np.argmin(sound))
        allowed = "finite" if np.isinf(low) else f"within ({low}, {high}), what its range returned"
        raise ValueError(
            f"{name}: apply made {found[row]} of the reward {rewards[row]}; it must be {allowed}"
        )
    return found


def _range(link: Link, name: str, bounds: Range | None) -> Range | None:
    found = call_custom(name, "range", lambda: link.range(bounds))
    unknown = "None, where no bound is known, or "
    return None if found is None else _pair(found, f"{name}: range", bounds, unknown)


def _clean(link: Link, name: str, bounds: Range) -> Range:
    found = call_custom(name, "clean", lambda: link.clean(bounds))
    return _pair(found, f"{name}: clean", bounds)


def _pair(found: Any, who: str, bounds: Range | None, others: str = "") -> Range:
    is_pair = isinstance(found, tuple) and len(found) == 2
    is_pair = is_pair and all(isinstance(end, int | float | np.number) for end in found)
    if not is_pair or not (np.isfinite(found).all() and found[0] <= found[1]):
        raise ValueError(
            f"{who} returned {found!r} for rewards in {bounds}; it must return {others}(low, "
            "high), finite and in this order"
        )
    return float(found[0]), float(found[1])
