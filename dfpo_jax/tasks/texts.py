r"""Comparison of texts by SQuAD's rule, changed where that rule removes content.

| the reference is | a response equals it if |
|---|---|
| a bare number: 1,234; -5; $18.90; 10%; 3/4 | it declares the same number, see `numbers` |
| mathematical: x^2, [2,5), C++, B-, -x, n! | they differ at most in space, case and formatting |
| anything else | they differ at most in case, punctuation, articles, space and formatting |

Numbers within a text are compared by value: "5 km" differs from "-5 km", and "1,000 people" equals
"1000 people". An article counts as content at the end ("Hepatitis A"), after a number ("Room 5A"),
before "and", "or", "vs" or an article, and in a list ("A, B"). A response may begin with "The
answer is". If the rule would remove a whole reference ("-"), only case and surrounding space are
ignored. An empty reference equals nothing.
"""

import functools
import re
import unicodedata

from dfpo_jax.tasks.dress import plain
from dfpo_jax.tasks.numbers import bare_number, numbers, parse_number, prepare

_ARTICLES = re.compile(r"\b(?:(?<!\d )a|an|the)\b(?=\s+\w)(?!\s+(?:a|an|the|and|or|vs|versus)\b)")
_LISTED = re.compile(r"(?<!\w)[Aa]\s?[,;/]")
_LEAD_IN = re.compile(
    r"\W{0,9}(?:(?:so|thus|therefore|hence),?\s)?(?:(?:the|my)\s)?(?:final\s|correct\s)?"
    r"answer(?:\sis\b|:|\sis:)\s*",
    re.IGNORECASE,
)
_MATHEMATICAL = re.compile(
    r"[\^=+<>\\_|√π∞±×#]|(?<!\w)[a-z]\s?[-*/]\s?[a-z\d](?!\w)"
    r"|(?<![\w-])(?:AB?|B|O)-\Z|\A-(?:sin|cos|tan|log|ln|exp)\b"
)
# Marks of mathematics in a text without words: lists, intervals, differences.
_MAY_BE_MATHEMATICAL = re.compile(
    r"\d\s?[*(]|[(\[{]-?\w+,|\d,\s?-?\d|\d\s?-\s?[a-z\d]"
    r"|\A[-!~][A-Za-z]|\A-\d{1,9}[A-Za-z]\b|\A[A-Za-z]{1,2}-\Z|\A[A-Za-z]'(?![A-Za-z])|\A(?:\d{1,9}|[A-Za-z])!\Z"
)
_FACTORIAL = re.compile(r"\W*\d+\s?!\W*")
_WORD = re.compile(r"[^\W\d_]{3}")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_BETWEEN_DIGITS = re.compile(r"(?<=\d)[^\w\s]+(?=\d)")
_SINGLE = re.compile(r"([\^_])\{(-?\w)\}")


def exact(response: str, answer: str) -> float:
    """1 if both are the same non-empty text, ignoring space around them, else 0."""
    return float(response.strip() == answer.strip() != "")


def normalised(response: str, answer: str) -> float:
    """1 if both are equal by the rules of the module, else 0."""
    expected, form = _reference(answer)
    if form is None:
        same = expected is not None and parse_number(response) == expected
        return float(same and not _FACTORIAL.fullmatch(response))
    if form(response) != expected:
        return 0.0
    # If a mathematical response such as "A+" equals "A", it has lost a sign.
    return float(form is symbols or not _mathematical(response))


def _mathematical(text: str) -> bool:
    bare = _THOUSANDS.sub("", _without_lead(text)).strip(" $.*")
    if _MATHEMATICAL.search(bare):
        return True
    return bool(_MAY_BE_MATHEMATICAL.search(bare)) and not _WORD.search(bare)


@functools.lru_cache(maxsize=4096)
def _reference(answer: str):
    """A reference in normal form, and the function that brings a response to that form."""
    value = bare_number(answer)
    if value is not None:
        return value, None
    forms = (symbols,) if _mathematical(answer) else (_words, _with_articles)
    for form in (*forms, _as_is):
        if expected := form(answer):
            return expected, form
    return None, None


def symbols(text: str) -> str:
    """A mathematical text without space, dollar signs, case, formatting and final punctuation."""
    bare = _SINGLE.sub(r"\1\2", _without_lead(text).replace("$", "").casefold())
    return "".join(bare.split()).strip(".,;:")


def _words(text: str) -> str:
    if _LISTED.search(text):
        return _with_articles(text)
    return " ".join(_ARTICLES.sub(" ", _with_articles(text)).split())


def _with_articles(text: str) -> str:
    """Words and values of numbers, separated by single spaces."""
    text = prepare(_without_lead(unicodedata.normalize("NFC", text)))
    parts, end = [], 0
    if any(character.isdigit() for character in text):
        for one in numbers(text):
            if one.value is not None:
                parts += [_letters(text[end : one.start]), str(one.value)]
                end = one.end
    return " ".join(" ".join([*parts, _letters(text[end:])]).split())


def _as_is(text: str) -> str:
    return " ".join(text.casefold().split())


def _without_lead(text: str) -> str:
    text = plain(text)
    lead = _LEAD_IN.match(text)
    return text[lead.end() :] if lead and text[lead.end() :].strip() else text


def _letters(text: str) -> str:
    if not text.isalnum():
        text = _BETWEEN_DIGITS.sub(" ", text).translate(_marks())
    return text.casefold()


@functools.cache
def _marks() -> dict[int, None]:
    """Maps every punctuation mark and symbol to None, which removes it."""
    kinds = ((code, unicodedata.category(chr(code))[0]) for code in range(0x20000))
    return {code: None for code, kind in kinds if kind in "PS"}
