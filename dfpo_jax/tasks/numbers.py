r"""Reads numbers from text.

A number becomes an exact fraction. `dress.plain` first removes LaTeX, Markdown and typeset
characters.

| written | read as |
|---|---|
| 18, 18.0, 18., .5, +7, -5, −5, １８, ١٨ | itself, with digits of any script and any minus sign |
| 1,234,567.5; 1{,}234; 12,34,567; 1 234 567; 1'234'567 | thousands, also Indian and Swiss ones |
| 1.234,56; 1.234.567; 1 234,5 | the continental notation |
| 1,234 | 1234: a comma before exactly three digits separates thousands |
| 1,23; 0,123; 1234,567 | 1.23, 0.123, 1234.567: any other single comma is a decimal one |
| 1.234 | 1.234: a single point is always a decimal one |
| 3/4, \frac{3}{4}, \tfrac34, 3 1/2, 3½ | fractions and mixed numbers |
| 1e3, 1.5×10^3, 3.5\times 10^{4}, 10³ | powers of ten |
| 50%, 50 \%, 50 percent | 50: a percentage is the number before the sign, never a hundredth |
| \$5, $5$, €5, 5 €, US$5, USD 5, -$5 | 5, whatever the currency |
| 18 dollars, 18km/h, 18 m^2, 18th, 18° | 18, whatever the unit |
| 5 million, $5k | 5000000, 5000 |
| negative 5, minus 5 | -5 |

These are not numbers: words (eighteen, infinity, nan), dates and times (3:30, 2024-01-15), versions
(1.2.3), ranges and telephone numbers (3-5, 555-1234), lists and pairs (1,2,3; (3,4)), other bases
(52_8), algebra and unevaluated arithmetic (2x, 3\sqrt{13}, 5 - 3, 2^3), comparisons (x < 5, less
than 5), parts of others (half of 5, twice 5, 5 squared, 5% of 40), denied numbers (not 5, 5 is
wrong), 2 ± 1, and anything with more than 4000 digits or an exponent beyond ±4000.
"""

import functools
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

from dfpo_jax.tasks.dress import plain

_MOST_DIGITS = 4000  # below Python's limit for its conversion, which takes quadratic time

_CURRENCY = re.compile(
    r"(?:(?<![A-Za-z])(?:US|CA|AU|NZ|HK|[SACR])?\$"
    r"|(?<![A-Za-z])(?:USD|EUR|GBP|JPY|INR|CNY|RMB|CHF|AUD|CAD|Rs\.?)) ?\Z"
)
_GROUPS = r"""
  (?P<english>[1-9]\d{0,2}(?:,\d{3})+(?:\.\d++)?|[1-9]\d?(?:,\d\d)+,\d{3}(?:\.\d++)?)
 |(?P<continental>[1-9]\d{0,2}(?:\.\d{3})+,\d++|[1-9]\d{0,2}(?:\.\d{3}){2,})
 |(?P<spaced>[1-9]\d{0,2}(?:[\ ']\d{3}(?!\d))+(?:[.,]\d++)?)
 |(?P<simple>\d++(?:[.,]\d++)?|(?<!\.)\.\d++)
"""
_DIGITS = re.compile(r"\d++")
_NUMBER = re.compile(
    rf"""
 (?<!\d)(?<!\d[.,':])
 (?:(?:{_GROUPS})(?![.,':]?\d)(?!-\d)(?!/\d++/)
   (?:[eE](?P<e>[-+]?\d++)
     |\s?[*×x]\s?10\s?(?:\^|\*\*)\s?[{{(]?(?P<times>[-+]?\d++)[)}}]?
     |(?<=10)\^[{{(]?(?P<power>[-+]?\d++)[)}}]?
     |\s?/\s?(?P<under>-?\d++(?:\.\d++)?)(?![.,':/-]?\d)
     |\ (?P<top>\d++)/(?P<bottom>\d++)(?![.,':/-]?\d))?
   (?P<percent>\s?(?:%|percent\b|per\ cent\b))?
   (?P<scale>\s?(?:hundred|thousand|million|billion|trillion)\b|(?:[kKMB]|bn)\b)?
  |(?P<other>\d++(?:(?:[.,':/]|-+)\d++)+)
 )
""",
    re.VERBOSE,
)
_SCALES = {
    "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
    "k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "bn": 10**9,
}  # fmt: skip

# Text before a number that is part of something else.
_PART_BEFORE = re.compile(
    r"(?:[A-Za-z][-+]|[\^_√][ ]?[{(]?|[a-zA-Z\]}]\{|\\(?:log|ln|sin|cos|tan|exp|binom|frac)[ ]?\{?"
    r"|[\w)\]}%!$][ ]*(?:[+/×^±]|(?<!\*)\*\*?)[ ]*|±[ ]*"
    r"|(?:[\d)\]}%!$]|(?<![A-Za-z])[A-Za-z])[ ]*-[ ]*"
    r"|(?:(?<![<])<=?|[^-=>]>=|(?<=[\w)])[ ]>|!=)[ ]*"
    r"|\d[ ]?[:—])\Z"
)
_MAY_BE_PART = tuple("^_√{(+-/×±*<=>:—")  # the characters before which `_PART_BEFORE` can match
_NAME_BEFORE = re.compile(r"(?:[A-Za-zÀ-ɏΑ-ω_\\]|\d[.,':]|\d)\Z")
_COMMAND_BEFORE = re.compile(r"\\[a-zA-Z]+\Z")
# Text after a number that is a factor, a term or a side of a comparison.
_FUNCTIONS = r"(?:sqrt|pi|sin|cos|tan|log|ln|exp|mod)"
_UNKNOWN = r"(?:[b-fijknopqrt-zDEGHIMO-UX-Z](?![A-Za-z'²]))"
_PART_AFTER = re.compile(
    rf"[ }}]*(?:[√π∞±^_]|{_FUNCTIONS}\b"
    r"|\\(?:frac(?!\{ ?[a-z]{2})|log|ln|sin|cos|tan|exp|theta|alpha|beta|binom|left|[cv]ec)"
    rf"|(?<!\ ){_UNKNOWN}|[*×+][ ]*[\w(\\√π$]|\*\*[ ]*[\d(]|-[ ]*(?:\$?[\d(\\√π]|[a-z]\b)"
    r"|/[ ]*(?:[\d(\\√π]|[xyznabpq]\b)|\([ ]*-?(?:\d|[a-z]\b)[^)]*[-+*/]|[<≤≥]|>=|!=|—\d"
    r"|[ ][xyznkpqrt](?![A-Za-z'])(?:[ ]*[-+*/^=]|[ .]*$))"
)
_POWER_OF_UNIT = re.compile(r"[\d}][ }]*(?:[kcdm]?m|ft|in|s|yd|mi)\}?\^\{?-?\Z")
_PAIR = re.compile(r"[(\[{]\Z")
_LABEL_BEFORE = re.compile(
    r"(?:^|[^A-Za-z])(?:[Ss]tep|[Pp]art|[Cc]ase|[Ee]quation|[Ee]q|[Ss]ection|[Ff]igure|[Tt]able"
    r"|[Ll]ine|[Ee]xample|[Pp]roblem|[Qq]uestion|[Ee]xercise|[Mm]ethod|[Ll]emma|[Tt]heorem"
    r"|[Nn]ote|[Pp]hase|[Cc]hapter)s?\.?[ ]?[(#]?\Z"
)
_CITED_BEFORE = re.compile(r"\S ?\[\Z")
_ITEM_AFTER = re.compile(r"[.)][ \t]+[^\s\d]")
_DENIED_BEFORE = re.compile(
    r"(?:\b(?:not|never|neither|nor|rather than|instead of)|n't)(?: (?:be|is|equal|to|the|just))*"
    r"[ =]*\Z",
    re.IGNORECASE,
)
_ENDS_DENIAL = re.compile(r"(?:not|n't|er|nor|of|an|be|is|al|to|the|st)[ =]*\Z", re.IGNORECASE)
# "5 is wrong" denies 5 as "not 5" does.
_DENIED_AFTER = re.compile(
    r" (?:(?:is|was|must be|would be) (?:\w+ )?(?:wrong|incorrect|(?:not|n't) (?:right|correct))"
    r"|(?:isn't|wasn't|can't be|cannot be|can not be) (?:right|correct))\b"
)
_MINUS_BEFORE = re.compile(r"(?<![\w-])(?:[Nn]egative|[Mm]inus) \Z")
_SAYS = re.compile(r"\b(?:is|was|are|be|equals|gives|get|got|to|of|at|answer|result|total)\Z")
_OF_ANOTHER = re.compile(
    r"(?:\b(?:half|thirds?|quarters?|fourths?|fifths?|sixths?|sevenths?|eighths?|ninths?|tenths?"
    r"|root|square|cube|percent|per cent|%) of|\b(?:twice|thrice|double|triple)"
    r"|\b(?:less|more|fewer|greater|larger|smaller) than|\bunder)\s\Z",
    re.IGNORECASE,
)
_CHANGED_AFTER = re.compile(
    r" (?:squared|cubed)\b(?! (?:f|m|y|in|cent|kilo|unit))|(?:(?<=%)|(?<=cent)) of \$?\d"
)
_SPECIAL = re.compile(r"<\|\w{1,40}\|>")  # <|im_end|>
_SIGN_APART = re.compile(r"(=\s*|\A\s*)-\s+(?=[.$\d])")
_TIMELIKE = re.compile(r":|/.*/|\..*\.|^\d{4}-\d\d?-\d\d?\Z")


class Found(NamedTuple):
    """A place in a plain text that has digits: a number or something else.

    Attributes:
      start: where it begins, with its sign and currency.
      end: where it ends.
      value: None if it is not a number but part of an expression, a range or a date.
      label: whether it only numbers a step, a section or the item of a list.
      timelike: whether it is a time, a date or a version.
    """

    start: int
    end: int
    value: Fraction | None
    label: bool = False
    timelike: bool = False


def prepare(text: str) -> str:
    """The plain text to search for numbers; joins a detached minus sign to its number."""
    if "<|" in text:
        text = _SPECIAL.sub("", text)
    text = plain(text)
    return _SIGN_APART.sub(r"\1-", text) if "- " in text and "\n" not in text.strip() else text


def numbers(text: str) -> list[Found]:
    """All places with digits in a prepared text, in order, without denied numbers."""
    return list(backwards(text))[::-1]


def backwards(text: str) -> Iterator[Found]:
    """`numbers` in reverse order, evaluated lazily."""
    matches, end = [], 0
    for run in _DIGITS.finditer(text):
        start = run.start()
        if start < end:
            continue
        if text[start - 1 : start] == "." and start - 1 >= end:
            start -= 1
        match = _NUMBER.match(text, start) or _NUMBER.match(text, run.start())
        if match:
            matches.append(match)
            end = match.end()
    for match in reversed(matches):
        if found := _judge(text, match):
            yield found


def _signed(text: str, start: int) -> tuple[int, str, bool]:
    """(start with sign and currency, the signs, whether there is a currency) of a number."""
    first, signs, currency = start, "", False
    if text[first - 1 : first] in ("-", "+") and first:
        first, signs = first - 1, text[first - 1]
    head = text[max(first - 8, 0) : first]
    if head and (head[-1] in "$ ." or head[-1].isupper()) and (found := _CURRENCY.search(head)):
        first, currency = first - len(found[0]), True
        if text[first - 1 : first] in ("-", "+") and first:
            first, signs = first - 1, text[first - 1] + signs
    return first, signs, currency


def _judge(text: str, match: re.Match) -> Found | None:
    """Judges a match by the text around it; None if it belongs to a name or is denied."""
    start, signs, currency = _signed(text, match.start())
    end = match.end()
    before, after = text[max(start - 40, 0) : start], text[end : end + 40]
    if signs and before and (before[-1].isalnum() or before[-1] in ")]}-+"):
        return Found(start, end, None)  # 3x-5, COVID-19, --1
    if not signs and _NAME_BEFORE.search(before[-2:]) and not _COMMAND_BEFORE.search(before):
        return None  # x1, H2O
    last = before.rstrip(" =")[-1:]
    if last == "^" or before.endswith("{"):
        if _POWER_OF_UNIT.search(before):
            return None
    elif _ENDS_DENIAL.search(before[-6:]) and _DENIED_BEFORE.search(before):
        return None
    if after[:1] == " " and _DENIED_AFTER.match(after):
        return None
    label = (last.isalpha() or last in ".#(") and bool(_LABEL_BEFORE.search(before[-14:]))
    if last == "[" and after.startswith("]") and end - start < 3:
        label = bool(_CITED_BEFORE.search(before))  # 18 [2]: a source
    if not label and (start == 0 or before.rpartition("\n")[2].strip() == ""):
        label = bool(_ITEM_AFTER.match(after))
    if match["other"]:
        return Found(start, end, None, label, bool(_TIMELIKE.search(match["other"])))
    part = before[-1:] in _MAY_BE_PART or before.rstrip(" ")[-1:] in _MAY_BE_PART or "\\" in before
    if (part and _PART_BEFORE.search(before[-8:])) or _PART_AFTER.match(after):
        return Found(start, end, None, label)
    changed = after[:1] == " " and _CHANGED_AFTER.match(text, end)
    if changed or (before.endswith(("f ", "n ", "e ", "r ")) and _OF_ANOTHER.search(before)):
        return Found(start, end, None, label)
    if before.endswith(("inus ", "tive ")) and (minus := _MINUS_BEFORE.search(before)):
        head = before[: minus.start()].rstrip()
        if signs or (re.search(r"[\w)%$]\Z", head) and not _SAYS.search(head)):
            return Found(start, end, None, label)  # 9 minus 5, x minus 5
        start, signs = start - len(minus[0]), "-"
    value = _value(match, before, after, currency) if len(signs) < 2 else None
    return Found(start, end, -value if value is not None and signs == "-" else value, label)


def _value(match: re.Match, before: str, after: str, currency: bool) -> Fraction | None:
    """The value of a match, without its sign."""
    digits = match["english"] or match["continental"] or match["spaced"] or match["simple"]
    if match["continental"]:
        digits = digits.replace(".", "").replace(",", ".")
    elif match["english"]:
        digits = digits.replace(",", "")
    else:
        if "," in digits and _PAIR.search(before) and re.match(r"[)\]}]", after):
            return None  # (3,4) is a pair
        digits = digits.replace(" ", "").replace("'", "").replace(",", ".")
    exponent = match["e"] or match["times"] or match["power"] or "0"
    if match.end() - match.start() > _MOST_DIGITS or len(exponent) > 5:
        return None
    if abs(int(exponent)) > _MOST_DIGITS:
        return None
    value = Fraction(digits)
    if match["power"]:
        value = Fraction(10) ** int(exponent) if digits == "10" else None
    elif int(exponent):
        value *= Fraction(10) ** int(exponent)
    if value is not None and match["under"]:
        value = value / Fraction(match["under"]) if Fraction(match["under"]) else None
    elif value is not None and match["bottom"]:
        top, bottom = int(match["top"]), int(match["bottom"])
        value = value + Fraction(top, bottom) if top < bottom and value.denominator == 1 else None
    if value is not None and match["scale"]:
        scale = match["scale"].strip()
        if len(scale) <= 2 and not currency:
            return value if scale == "K" else None
        value *= _SCALES[scale]
    return value


# Text that may come before an answer.
_LEAD = re.compile(
    r"\W*(?:(?:so|thus|hence|therefore|and|then)\b\W*)?"
    r"(?:(?:the|my|our)?\s*(?:final|correct|right)?\s*(?:answer|result|total|value|sum)\b\W*"
    r"(?:is|are|was|equals|will be|would be)?\s*|it(?:'s| is)\s|[a-z]\s?=\s?|=\s?|about\s"
    r"|approximately\s|exactly\s)?\W*",
    re.IGNORECASE,
)
_JOINS = r"(?:and|or|to|out|of|plus|minus|times|equals?|vs|versus|through|makes?|is|are)"
_ASIDE = re.compile(
    rf"(?:[ /}}]*(?!{_JOINS}\b)[A-Za-z$%²³]+\.?){{0,3}}[ }}]*"
    r"(?:\(|\.\s+\D|;|,?\s+(?:because|since|as|so|which|that|i\.e\.)\b|,\s+not\b|="
    r"|\n\s*[^\s\d$-]|(?<=[a-z])\s+(?:for|in|per|after|over|on|at|with|each|every|from|of)\b)"
)
_ASIDE_TELLS_WHY = re.compile(r"\(|because|since|as|that|i\.e\.|not")
# In an aside: it takes back the number before it.
_TAKEN_BACK = re.compile(
    r"\b(?:(?:actually|answer is|could be) \$?\d|should (?:be|have been)|wrong|incorrect|wait,)"
    r"|\(or \$?\d+\)"
)
_IN_BRACKETS = re.compile(r"\s\([^()]*\)")
_LINE = 80  # most characters of an answer in one line


@functools.lru_cache(maxsize=1024)
def _read(text: str) -> tuple[str, tuple[Found, ...]]:
    """The prepared text and its `numbers`, cached since extraction and verifier both read it."""
    text = prepare(text).strip()
    return text, tuple(numbers(text))


@functools.lru_cache(maxsize=4096)
def parse_number(text: str) -> Fraction | None:
    """The number that a text declares, None if it declares none.

    There may be words and a unit around it. If one line of at most 80 characters has several
    numbers, the declared one is the number after the last "=" ("3 dozen = 36", "12 eggs, so 12 * 2
    = 24"), or the first if the text begins with it and continues with an aside: "18 (not 19)",
    "18 dollars for 3 days", "48 = 6 × 8", "18, because 9 + 9 = 18". "18 or 19", "3 and 5",
    "18 (should be 20)" and longer texts with several numbers declare none.
    """
    if text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS:
        return Fraction(int(text))
    text, found = _read(text)
    if any(not one.label for one in found):
        found = [one for one in found if not one.label]
    if len(found) == 1:
        return found[0].value
    if found and found[0].value is not None and all(x.value == found[0].value for x in found):
        return found[0].value
    if not found or len(text) > _LINE:
        return None
    first = found[0]
    if first.value is not None and _LEAD.fullmatch(text[: first.start]):
        if aside := _ASIDE.match(text, first.end):
            back = found[-1].value != first.value and _TAKEN_BACK.search(text, first.end)
            return None if back else _behind(text, first, aside)
    _, mark, last = text.rpartition("=")
    if mark and re.search(r"\d", last):
        return parse_number(last)
    return None


def _behind(text: str, first: Found, aside: re.Match) -> Fraction | None:
    """The number after the last "=" of an aside, unless that gives a reason; else the first."""
    _, mark, last = _IN_BRACKETS.sub("", text).rpartition("=")
    value = parse_number(last) if mark and not _ASIDE_TELLS_WHY.search(aside[0]) else None
    return first.value if value is None else value


def has_number(text: str) -> bool:
    """Whether a text has digits outside labels of steps and names such as H2O."""
    if text.isascii() and text.isdigit():
        return True
    return any(not one.label for one in _read(text)[1])


def bare_number(text: str) -> Fraction | None:
    """The value of a text that is only a number, with a sign, currency or percent; else None."""
    text = prepare(text).strip().rstrip(".").strip()
    found = numbers(text)
    if len(found) != 1 or text[: found[0].start].strip(" $") or text[found[0].end :].strip(" $}"):
        return None
    return found[0].value


_OR_BETWEEN = re.compile(r"[ }$%]*(?:[A-Za-z]+ ){0,3}or (?:[a-z]+ ){0,2}(?:[a-z] ?= ?)?[ $]*")
_RANGE_OPENS = re.compile(r"\b[Bb]etween \$?\Z|(?:\A|\W\s|\b(?:is|are|be) )[Ff]rom \$?\Z")
_RANGE_GOES_ON = re.compile(r"[ $%]{0,3}(?:[A-Za-z]+ )?(?:and|to) [ $]{0,3}")
_ASIDE_OPENS = re.compile(r"\d[%$} ]*(?:[A-Za-z/.]+ ?){0,3}\(\Z")
_TAIL = 64  # last characters of a response, which usually have its last number


def last_number(text: str) -> str | None:
    r"""The last number of a text, in plain notation.

    It ignores numbers of steps and list items, times, dates, denied numbers ("not 19") and asides
    in brackets after a number ("18 (that is, 2 times 9)"). None if the last one is part of an
    expression or a range ("from 12 to 13"), or one of two that "or" joins.
    """
    if len(text) > _TAIL + 20:
        tail = text[text.find(" ", len(text) - _TAIL) :]
        whole = all(tail.count(pair[0]) == tail.count(pair[1]) for pair in ("()", "{}"))
        if whole and len(tail) <= _TAIL and (found := _last(prepare(tail))) is not None:
            return found
    return _last(prepare(text))


def _last(text: str) -> str | None:
    spare, found = None, (one for one in backwards(text) if not one.timelike)
    for one in found:
        if one.label:
            spare = spare or one
            continue
        if _in_aside(text, one):
            continue
        if one.value is None:
            return None
        before = text[max(one.start - 40, 0) : one.start]
        joined = "or " in before or before.endswith(("and ", "to ", "and $", "to $"))
        if joined and (other := next(found, None)) and other.value != one.value:
            if _OR_BETWEEN.fullmatch(text, other.end, one.start):
                return None
            opens = _RANGE_OPENS.search(text[max(other.start - 20, 0) : other.start])
            if opens and _RANGE_GOES_ON.fullmatch(text, other.end, one.start):
                return None
        return text[one.start : one.end].strip()
    return text[spare.start : spare.end].strip() if spare and spare.value is not None else None


def _in_aside(text: str, one: Found) -> bool:
    opened = text.rfind("(", max(one.start - 80, 0), one.start)
    if opened < 0 or ")" in text[opened : one.start] or ")" not in text[one.end : one.end + 80]:
        return False
    if "should be" in text[opened : one.start]:
        return False
    return bool(_ASIDE_OPENS.search(text[max(opened - 40, 0) : opened + 1]))
