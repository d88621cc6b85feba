r"""Finding the answer in a response.

| method | finds |
|---|---|
| none | the whole response |
| boxed | the content of the last complete \boxed{...}, \fbox{...} or "\boxed 42", innermost first |
| hashes | the rest of the line, else the next line, after the last "####" with text after it |
| tags | the content of the last <answer>...</answer> |
| last_number | the last number in the text, see `numbers.last_number` |
| regex | the first group of the last match of a pattern, or the whole match |

Empty boxes, hashes and tags are ignored. Of several methods, the first one counts whose result the
verifier can use: "number" needs digits, "choice" a letter, the others anything but space. A result
with digits that is not a number, such as "18 or 19" in a box, is a wrong answer; the next method is
not tried.
"""

import re
from collections.abc import Callable

from dfpo_jax.tasks.numbers import last_number

_BOX_TOKEN = re.compile(r"\\(?:boxed|fbox|framebox)\s*(\{|[^\s{}$\\]+)|\\.|[{}]", re.DOTALL)
_TAGS = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL | re.IGNORECASE)
_LINE = re.compile(r"\s*([^\n]*)")


def boxed(text: str) -> str | None:
    r"""The content of the last complete, non-empty box, with balanced braces inside."""
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
    """The rest of the line, else the next line, after the last "####" with text after it."""
    for part in reversed(text.split("####")[1:]):
        if found := _LINE.match(part)[1].strip(" \t\r#"):
            return found
    return None


def tags(text: str) -> str | None:
    """The text between the last non-empty <answer> and its </answer>."""
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
    """A function (response, usable=bool) that returns a response's answer, or None.

    Args:
      methods: names of `METHODS` or "regex", joined by commas; the first one counts whose result
        makes `usable` true.
      pattern: for "regex"; its last match counts, or the first group of that match.
      after: "" or a marker, such as "</think>"; only the text after its last occurrence counts. A
        response without the marker has no answer.

    Raises:
      ValueError: a method is unknown, or the pattern is missing, unused or not a regular
        expression.
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
        raise ValueError(f"pattern is {pattern!r}, not a regular expression: {error}") from error

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
