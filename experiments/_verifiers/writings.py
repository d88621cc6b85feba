r"""Other ways to write a reference answer, and wrong answers that are close to it.

Both are made only from the text of the reference, without the readers that are tested with them.
"""

import re
import string
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Reference:
    """A reference answer.

    Attributes:
      kind: its kind: "integer", "decimal", "fraction", "percent", "currency", "unit", "letter",
        "set", "interval", "expression" or "words"; "negative" and "thousands" are integers too.
      answer: its text.
      right: other texts with the same meaning.
      wrong: texts with another meaning.
    """

    kind: str
    answer: str
    right: tuple[str, ...]
    wrong: tuple[str, ...]


_KINDS = (
    ("integer", r"\d+"),
    ("negative", r"-\d+"),
    ("thousands", r"-?\d{1,3}(?:,\d{3})+"),
    ("decimal", r"-?\d+\.\d+"),
    ("fraction", r"-?\d+/\d+|-?\\[dt]?frac\{\d+\}\{\d+\}"),
    ("percent", r"\d+(?:\.\d+)?\s?\\?%"),
    ("currency", r"\\?\$\d[\d,]*(?:\.\d+)?"),
    ("unit", r"\d+(?:\.\d+)? [a-z]{1,8}"),
    ("letter", r"[A-Z]"),
    ("interval", r"[(\[]\s*-?(?:\d+|\\infty)\s*,\s*(?:\d+|\\infty)\s*[)\]]"),
    ("set", r"-?\d+(?:,\s?-?\d+)+"),
    ("words", r"(?:\\text\{)?[^\W\d_]{2}[^\d^_=+<>\\|]*\}?"),
)


def kind_of(answer: str) -> str:
    """The kind of a reference, judged by its form."""
    return next((k for k, form in _KINDS if re.fullmatch(form, answer.strip())), "expression")


def reference(answer: str) -> Reference:
    """A reference with other right texts, and with wrong ones that are close."""
    kind = kind_of(answer)
    make = {"letter": _letter, "interval": _interval, "set": _set, "words": _words}
    numeric = ("integer", "negative", "thousands", "decimal", "percent", "currency", "unit")
    right, wrong = (
        _number(answer, kind)
        if kind in numeric
        else _fraction(answer)
        if kind == "fraction"
        else make.get(kind, _expression)(answer)
    )
    right = tuple(dict.fromkeys([answer, *right]))
    return Reference(kind, answer, right, tuple(t for t in dict.fromkeys(wrong) if t not in right))


def _number(answer: str, kind: str) -> tuple[list[str], list[str]]:
    digits = re.sub(r"[^\d.-]", "", answer)
    value, unit = Fraction(digits), ""
    if kind == "unit":
        unit = answer[answer.index(" ") :]
    whole, _, part = digits.lstrip("-").partition(".")
    sign, tail = "-" * digits.startswith("-"), f".{part}" if part else ""
    grouped = f"{int(whole):,}"
    right = [f"{sign}{whole}{tail}{unit}", f"{sign}{whole}.{part or 0}0{unit}"]
    if len(whole) > 3:
        marks = (",", "{,}", " ", "\u202f", "\\,", ",\\!")
        right += [f"{sign}{grouped.replace(',', mark)}{tail}{unit}" for mark in marks]
    if sign:
        right.append(f"\u2212{whole}{tail}{unit}")
    if kind == "percent":
        right += [f"{digits}%", f"{digits} \\%", f"{digits} percent"]
    if kind == "currency":
        right += [f"${grouped}{tail}", f"\\${grouped}{tail}", f"{whole}{tail} dollars"]
    more = value + 1
    wrong = [_decimal(-value), _decimal(more), _decimal(10 * value), _decimal(value / 10), ""]
    wrong += [f"{_decimal(value)} or {_decimal(more)}", f"{_decimal(value - 1)} or {digits}"]
    step = 5 if value == 3 else 3  # the difference of a range is not the reference
    wrong.append(f"{_decimal(abs(value) + step)}-{whole}{tail}")
    if value not in (0, 1):  # their roots or multiples equal the numbers
        wrong += [f"{digits}x", f"\\sqrt{{{digits}}}"]
    # Zero is its own negative and its own multiple.
    same = {_decimal(value)}
    return right, [text + unit if text and unit else text for text in wrong if text not in same]


def _decimal(value: Fraction) -> str:
    """A fraction with a finite decimal expansion."""
    if value.denominator == 1:
        return str(value.numerator)
    places = next(n for n in range(1, 30) if (value * 10**n).denominator == 1)
    scaled = f"{abs(value.numerator * 10**places // value.denominator):0{places + 1}d}"
    return f"{'-' * (value < 0)}{scaled[:-places]}.{scaled[-places:]}"


def _fraction(answer: str) -> tuple[list[str], list[str]]:
    top, bottom = re.findall(r"\d+", answer)
    sign = "-" * answer.startswith("-")
    right = [f"{sign}\\{c}frac{{{top}}}{{{bottom}}}" for c in ("", "d", "t")]
    right.append(f"{sign}{top}/{bottom}")
    value = Fraction(f"{sign}{top}/{bottom}")
    if set(re.sub("2|5", "", _factors(value.denominator))) == set():
        right.append(_decimal(value))
    other = "" if sign else "-"
    wrong = [f"{other}{top}/{bottom}", f"{sign}{int(top) + 1}/{bottom}", ""]
    wrong += [f"{sign}{top}{bottom}", f"\\frac{{{top}}}{{{int(bottom) + 1}}}"]
    if top != bottom:
        wrong += [f"{sign}{bottom}/{top}", f"{sign}\\frac{{{bottom}}}{{{top}}}"]
    return right, wrong


def _factors(number: int) -> str:
    """The factors 2 and 5 of a number as text, and an x if there are others."""
    found = ""
    for prime in (2, 5):
        while number % prime == 0:
            number, found = number // prime, found + str(prime)
    return found + "x" * (number > 1)


def _letter(answer: str) -> tuple[list[str], list[str]]:
    others = [letter for letter in string.ascii_uppercase[:5] if letter != answer]
    wrong = [*others, f"{answer} or {others[0]}", f"{others[0]} and {answer}", f"not {answer}", ""]
    return [f"({answer})", f"{answer}.", f"\\text{{{answer}}}", f"{answer}) so"], wrong


def _interval(answer: str) -> tuple[list[str], list[str]]:
    flip = str.maketrans("()[]", "[]()")
    bare = answer.replace(" ", "")
    right = [bare, bare.replace(",", ", "), f"\\left{bare[:-1]}\\right{bare[-1]}"]
    wrong = [bare[1:-1].split(",")[0], ""]
    if not bare.startswith("(-\\infty"):  # no interval holds infinity
        wrong.append(bare[0].translate(flip) + bare[1:])
    if not bare.endswith("\\infty)"):
        wrong.append(bare[:-1] + bare[-1].translate(flip))
    return right, wrong


def _set(answer: str) -> tuple[list[str], list[str]]:
    parts = re.split(r",\s?", answer)
    changed = [*parts[:-1], str(int(parts[-1]) + 1)]
    wrong = [", ".join(parts[:-1]), ", ".join(changed), ", ".join([*parts, "977"]), ""]
    return [",".join(parts), ", ".join(parts)], wrong


def _words(answer: str) -> tuple[list[str], list[str]]:
    bare = re.sub(r"\\text\{(.*)\}", r"\1", answer)
    right = [bare, bare.lower(), bare.upper(), f"{bare}.", f"\\text{{{bare}}}"]
    return right, [f"not {bare}", f"{bare} Smith", bare[::-1], f"{bare} or Oslo", "Oslo", "the", ""]


def _expression(answer: str) -> tuple[list[str], list[str]]:
    right = [answer, re.sub(r"\s*([+=])\s*", r" \1 ", answer).strip()]
    wrong = [f"{answer}+1", f"2{answer}", ""]
    for old, new in (("+", "-"), ("-", "+"), ("^2", "^3"), ("\\pi", "\\pi^2"), ("_8", "_7")):
        if old in answer:
            wrong.append(answer.replace(old, new, 1))
    if digits := re.search(r"\d+", answer):
        changed = str(int(digits[0]) + 1)
        wrong.append(answer[: digits.start()] + changed + answer[digits.end() :])
    return right, wrong
