"""Finding the answer in a response."""

import re
from collections.abc import Callable

_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?(?:\s*/\s*\d+)?%?|-?\$?\.\d+%?")


def boxed(text: str) -> str | None:
    r"""What the last complete \boxed{...} holds, braces within it balanced."""
    for start in reversed([m.end() for m in re.finditer(r"\\boxed\s*\{", text)]):
        depth = 1
        for position in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                return text[start:position].strip()
    return None


def last_number(text: str) -> str | None:
    """The last number: 1,234.5, -3, $7, 12%, 3/4."""
    found = _NUMBER.findall(text)
    return found[-1].rstrip(",") if found else None


def hashes(text: str) -> str | None:
    """The rest of the line after the last "####"."""
    _, mark, rest = text.rpartition("####")
    return rest.strip().split("\n")[0].strip() or None if mark else None


def tags(text: str) -> str | None:
    """Between the last <answer> that is closed and its </answer>."""
    found = re.findall(r"<answer>((?:(?!<answer>).)*?)</answer>", text, re.DOTALL)
    return found[-1].strip() if found else None


METHODS: dict[str, Callable[[str], str | None]] = {
    "none": lambda text: text.strip(),
    "boxed": boxed,
    "last_number": last_number,
    "hashes": hashes,
    "tags": tags,
}


def extractor(methods: str, pattern: str = "", after: str = "") -> Callable[[str], str | None]:
    """A function from a response to its answer, None where there is none.

    Args:
      methods: names of `METHODS` or "regex", joined by commas; the first that finds something
        counts.
      pattern: for "regex": its last match counts, the first group if it has one.
      after: "" or a marker; only what follows its last occurrence is looked at, such as
        "</think>". A response without it holds no answer.

    Raises:
      ValueError: an unknown method, a pattern that is missing, unused or no regular expression.
    """
    names = [name.strip() for name in methods.split(",")]
    for name in names:
        if name not in METHODS and name != "regex":
            raise ValueError(
                f"extract is {methods!r}; it must be of {', '.join([*METHODS, 'regex'])}"
            )
    if bool(pattern) != ("regex" in names):
        raise ValueError(f"pattern is {pattern!r} and extract {methods!r}; regex needs a pattern")
    try:
        compiled = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ValueError(f"pattern is {pattern!r}, no regular expression: {error}") from error

    def by_regex(text: str) -> str | None:
        found = list(compiled.finditer(text))
        return (found[-1].group(1 if compiled.groups else 0) or "").strip() if found else None

    functions = [by_regex if name == "regex" else METHODS[name] for name in names]

    def extract(text: str) -> str | None:
        if after:
            _, mark, text = text.rpartition(after)
            if not mark:
                return None
        return next((x for x in (function(text) for function in functions) if x is not None), None)

    return extract
