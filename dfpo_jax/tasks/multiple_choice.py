"""Choices of a multiple-choice question: the right one, their order and their letters."""

import hashlib
import json
import random
import string
from collections.abc import Sequence
from typing import Any


def lettered(where: str, texts: Sequence[str], right: int) -> tuple[str, str]:
    """The choices as lines "A) text", shuffled by a hash of them, and the letter of the right one.

    Args:
      where: names the row in errors.
      texts: at most 26 different choices.
      right: place of the right one.

    Raises:
      ValueError: two choices are the same, or there are too many.
    """
    if len(texts) > len(string.ascii_uppercase) or len(set(texts)) < len(texts):
        raise ValueError(f"{where}: choices must differ and be at most 26: {list(texts)}")
    shuffled, answer = list(texts), texts[right]
    digest = hashlib.blake2b(json.dumps(shuffled).encode(), digest_size=8).digest()
    random.Random(int.from_bytes(digest, "little")).shuffle(shuffled)
    letters = string.ascii_uppercase[: len(shuffled)]
    lines = [f"{letter}) {text}" for letter, text in zip(letters, shuffled, strict=True)]
    return "\n".join(lines), letters[shuffled.index(answer)]


def right_choice(
    where: str, texts: Sequence[str], value: Any, answer: str, *, numbers: bool = False
) -> int:
    """The index of the right choice, which a row gives by its index, text or letter.

    An integer is an index from 0 if there is such a choice, else the text of a choice. A text is
    the text of a choice, its letter, or its index in digits. If the choices are numbers, an integer
    is one of them or an index. If two of these readings name different choices, the row is refused.

    Args:
      where: names the row in errors.
      texts: the choices.
      value: the answer in the row.
      answer: the same value as text.
      numbers: whether the row's choices are numbers, not texts.

    Raises:
      ValueError: the answer names no choice, or could name two.
    """
    index = int(answer) if answer.isascii() and answer.isdigit() and len(answer) < 9 else -1
    by_index = index if 0 <= index < len(texts) else None
    if not isinstance(value, str) and not numbers and by_index is not None:
        return by_index
    letters = string.ascii_uppercase[: len(texts)]
    by_letter = letters.index(answer) if len(answer) == 1 and answer in letters else None
    by_text = list(texts).index(answer) if answer in texts else None
    found = {place for place in (by_text, by_letter, by_index) if place is not None}
    if not found:
        raise ValueError(f"{where}: answer {answer!r} is none of the choices {list(texts)}")
    if len(found) > 1:
        named = " or ".join(repr(texts[place]) for place in sorted(found))
        raise ValueError(
            f"{where}: answer {answer!r} may mean {named} of the choices {list(texts)}; write "
            "choices as texts and an index as an integer"
        )
    return found.pop()
