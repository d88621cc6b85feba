"""Checks of options: each raises a ValueError with the name, the value and what is allowed.

Only `check_unit_interval` also takes arrays. It passes them, because a traced value cannot be
compared.
"""

import numbers
from typing import Any


def check(ok: bool, name: str, value: Any, allowed: str) -> None:
    """Raises ValueError unless `ok`; `allowed` says what `name` may be."""
    if not ok:
        raise ValueError(f"{name} is {value!r}; allowed: {allowed}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    check(value in choices, name, value, ", ".join(choices))


def check_unit_interval(name: str, value: Any) -> None:
    """Raises ValueError for a number outside [0, 1]; arrays pass."""
    if isinstance(value, numbers.Real):
        check(0 <= value <= 1, name, value, "a number in [0, 1]")


def check_positive(name: str, value: float) -> None:
    """Raises ValueError unless `value` is above 0."""
    check(value > 0, name, value, "a positive number")


def check_level(name: str, value: float) -> None:
    """Raises ValueError unless `value`, the mass of a tail, is in (0, 1]."""
    check(0 < value <= 1, name, value, "above 0 and at most 1")
