r"""The built-in verifiers, by name, and the references that they can judge.

| verifier | a reference is | a response is right if |
|---|---|---|
| exact | a text | both are equal, ignoring space around them |
| normalised | a text | both are equal by the rules of `texts` |
| number | a number, see `numbers` | they differ by at most tolerance max(1, abs(reference)) |
| choice | a letter | both declare the same letter, see `choices` |
| math_verify | mathematics | math-verify finds them equal, or they are the same text or number |

If the reference is empty, no response is right.

`math_verify` is the package's verdict with three exceptions. Words are compared as words (the
package takes "even" and "neve" for the same product of letters). So is a number in a base other
than ten (52_8 equals 52_{8} and 52, but not 52_7; 52 does not equal 52_8). A pair of numbers, such
as (1,234), is not a number.
"""

import functools
import re
from collections.abc import Callable
from fractions import Fraction

from dfpo_jax.tasks.choices import letter
from dfpo_jax.tasks.dress import plain
from dfpo_jax.tasks.numbers import bare_number, has_number, parse_number
from dfpo_jax.tasks.texts import exact, normalised, symbols

BUILT_IN = ("exact", "normalised", "number", "choice", "math_verify")
_BASE = re.compile(r"(\w+)_\{?(\d+)\}?")
_PAIR = re.compile(r"[(\[]-?\d+(?:,-?\d+)+[)\]]")  # (1,234) is not 1234
_WORDS = re.compile(r"[^\W\d_]{4,}(?:[ -][^\W\d_]+)*|[^\W\d_]+(?:[ -][^\W\d_]{2,})+")
_ROUNDING = 1e-6
# In mathematics 1,2 is a list and 5! a factorial, which `numbers` reads as 1.2 and 5.
_NOT_AS_A_NUMBER = re.compile(r"\d,\d\d?(?!\d)|!(?!\s*\d)")


def number(response: str, answer: str, tolerance: float) -> float:
    """1 if |response - answer| <= tolerance max(1, |answer|), else 0.

    A tolerance of 1e-6 or less allows for rounding, not for miscounting: it compares two whole
    numbers exactly.

    Raises:
      ValueError: the reference answer is not a number.
    """
    expected, found = parse_number(answer), parse_number(response)
    if expected is None:
        raise ValueError(f"the reference answer {answer!r} is not a number")
    if found is None:
        return 0.0
    if found == expected:
        return 1.0
    if tolerance <= _ROUNDING and found.denominator == expected.denominator == 1:
        return 0.0
    if _far(found, expected, tolerance):
        return 0.0
    return float(abs(found - expected) <= _allowed(expected, tolerance))


def _far(found: Fraction, expected: Fraction, tolerance: float) -> bool:
    """Whether two numbers differ so much that floats can decide without exact arithmetic."""
    try:
        size = max(1.0, abs(float(expected)))
        return abs(float(found) - float(expected)) > (2.0 * tolerance + 1e-12) * size
    except OverflowError:
        return False


@functools.lru_cache(maxsize=4096)
def _allowed(expected: Fraction, tolerance: float) -> Fraction:
    return Fraction(repr(tolerance)) * max(1, abs(expected))


def choice(response: str, answer: str, declared: bool = False) -> float:
    """1 if both declare the same letter, else 0.

    Args:
      response: a response.
      answer: the reference.
      declared: whether the response is known to be an answer, see `choices.letter`.

    Raises:
      ValueError: the reference answer names no letter.
    """
    expected = _reference_letter(answer)
    if expected is None:
        raise ValueError(f"the reference answer {answer!r} names no letter")
    return float(letter(response, declared) == expected)


@functools.lru_cache(maxsize=4096)
def _reference_letter(answer: str) -> str | None:
    return letter(answer, declared=True)


def mathematics(response: str, answer: str) -> float | None:
    """The verdict of `math_verify` if it needs no call of the package, else None."""
    if not response.strip():
        return 0.0
    kind, expected = _mathematics_reference(answer)
    if kind == "words":
        return normalised(response, answer)
    found = symbols(response)
    if kind == "base":
        base = _BASE.fullmatch(found)
        return float((base.groups() if base else (found, expected[1])) == expected)
    if found and found == expected:
        return 1.0
    if kind == "number":
        base = _BASE.fullmatch(found)
        if _PAIR.fullmatch(found) or (base and base[1].isdigit() and base[2] != "10"):
            return 0.0
    if kind == "number" and not _NOT_AS_A_NUMBER.search(response):
        return 1.0 if parse_number(response) == bare_number(answer) else None
    return None


@functools.lru_cache(maxsize=4096)
def _mathematics_reference(answer: str) -> tuple[str, object]:
    bare = plain(answer).strip(" $}.")
    if _WORDS.fullmatch(bare):
        return "words", None
    if base := _BASE.fullmatch(symbols(answer)):
        if base[1][0].isdigit():
            return "base", base.groups()
    numeric = bare_number(answer) is not None and not _NOT_AS_A_NUMBER.search(answer)
    return "number" if numeric else "other", symbols(answer)


def usable(name: str) -> Callable[[str], bool]:
    """A function that says whether the verifier `name` can use the result of an extraction."""
    if name == "number":
        return has_number
    if name == "choice":
        return lambda found: letter(found, declared=True) is not None
    return lambda found: not found or not found.isspace()


def check_reference(name: str, answer: str) -> None:
    """Raises unless the built-in verifier `name` can judge against a reference.

    Raises:
      ValueError: describes the fault; the caller adds its place in the data.
    """
    if name == "number" and parse_number(answer) is None:
        raise ValueError(f"the reference answer {answer!r} is not a number, which 'number' needs")
    if name == "choice" and _reference_letter(answer) is None:
        raise ValueError(f"the reference answer {answer!r} names no letter, which 'choice' needs")
    if name in BUILT_IN and not answer.strip():
        raise ValueError(f"the reference answer is empty, and {name!r} needs one")


def here(name: str, tolerance: float, declared: bool) -> Callable[[str, str], float]:
    """The function (response, answer) -> reward of a verifier that runs in this process."""
    if name == "number":
        return functools.partial(number, tolerance=tolerance)
    if name == "choice":
        return functools.partial(choice, declared=declared)
    return {"exact": exact, "normalised": normalised}[name]
