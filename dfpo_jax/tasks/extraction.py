r"""Finding the answer in a response.

| method | finds |
|---|---|
| none | the whole response |
| boxed | what the last complete \boxed{...}, \fbox{...} or "\boxed 42" holds, of nested the inner |
| hashes | the rest of the line after the last "####" that something follows, else the next line |
| tags | what the last <answer>...</answer> holds |
| last_number | the last number in the text, see `numbers.last_number` |
| regex | the first group of the last match of a pattern, or the match |

Boxes, hashes and tags that hold nothing are passed over. Of several methods, the first counts whose
find the verifier can use: "number" needs digits, "choice" a letter, the others anything but space.
A find that has digits and is no number, such as "18 or 19" in a box, is an answer, and a wrong one:
it does not yield to the next method.
"""

import re
from collections.abc import Callable

from dfpo_jax.tasks.numbers import last_number

_BOX_TOKEN = re.compile(r"\\(?:boxed|fbox|framebox)\s*(\{|[^\s{}$\\]+)|\\.|[{}]", re.DOTALL)
_TAGS = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL | re.IGNORECASE)
_LINE = re.compile(r"\s*([^\n]*)")


def boxed(text: str) -> str | None:
    r"""What the last complete box holds, braces within it balanced; empty boxes are passed over."""
    best, found, open_braces = -1, None, []
    for token in _BOX_TOKEN.finditer(text):
        if token[0] == "{":
            open_braces.append(None)
        elif token[0] == "}":
            start = open_braces.pop() if open_braces else None
            if start is not None and start > best and text[start : token.start()].strip():
                best, found = start, text[start : token.start()].strip()
        elif token[1] == "{":
            open_braces.append(token.end())
        elif token[1] and (bare := token[1].rstrip(".,;:!?*)")):
            best, found = token.start(1), bare
    return found


def hashes(text: str) -> str | None:
    """The rest of the line after the last "####" that something follows, else the next line."""
    for part in reversed(text.split("####")[1:]):
        if found := _LINE.match(part)[1].strip(" \t\r#"):
            return found
    return None


def tags(text: str) -> str | None:
    """Between the last <answer> that is closed and not empty and its </answer>."""
    found = [content.strip() for content in _TAGS.findall(text)]
    return next((content for content in reversed(found) if content), None)


METHODS: dict[str, Callable[[str], str | None]] = {
    "none": lambda text: text.strip(),
    "boxed": boxed,
    "last_number": last_number,
    "hashes": hashes,
    "tags": tags,
}
Extract = Callable[..., str | None]


def extractor(methods: str, pattern: str = "", after: str = "") -> Extract:
    """A function (response, usable=bool) from a response to its answer, None where there is none.

    Args:
      methods: names of `METHODS` or "regex", joined by commas; the first counts that finds
        something for which `usable` is true.
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

    def extract(text: str, usable: Callable[[str], bool] = bool) -> str | None:
        if after:
            _, mark, text = text.rpartition(after)
            if not mark:
                return None
        for function in functions:
            found = function(text)
            if found is not None and usable(found):
                return found
        return None

    return extract
