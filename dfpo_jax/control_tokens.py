"""Control tokens of a tokenizer, and encoding in which only a template can write them.

A control token frames a conversation. It is a special token, in whichever file of the tokenizer it
is declared, or a plain added token that the chat template writes.
"""

import functools
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import tokenizers
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]  # noncharacters, which no text contains


class Piece(NamedTuple):
    """A part of a rendered conversation.

    Attributes:
      text: the part.
      frame: whether the template wrote it; otherwise it is from a message.
    """

    text: str
    frame: bool


class ControlTokens:
    """The control tokens of a tokenizer.

    Attributes:
      ids: the ids of the control tokens by name.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, written: str):
        """Finds the tokens.

        Args:
          tokenizer: any tokenizer.
          written: what the chat template may write: its source and some renderings.
        """
        self._tokenizer = tokenizer
        self.ids = {
            name: tokenizer.convert_tokens_to_ids(name) for name in _names(tokenizer, written)
        }
        longest_first = sorted(self.ids, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def first(self, text: str) -> int | None:
        """The control token at the start of a text, ignoring blanks, or None."""
        match = self._pattern.match(text.lstrip())
        return self.ids[match[0]] if match else None

    def encode(self, pieces: Sequence[Piece]) -> list[int]:
        """Token ids of the joined pieces; only the frame can write control tokens.

        A control token that a message spells stays text: it is encoded as if there were no such
        token.

        Raises:
          ValueError: a message spells one and the tokenizer is not from the package tokenizers.
        """
        text = "".join(piece.text for piece in pieces)
        found = self._tokenizer.encode(text, add_special_tokens=False)
        known = set(self.ids.values())
        wanted = Counter(
            self.ids[name] for p in pieces if p.frame for name in self._pattern.findall(p.text)
        )
        if Counter(token for token in found if token in known) == wanted:
            return found
        return self._encode_apart(pieces)

    def _encode_apart(self, pieces: Sequence[Piece]) -> list[int]:
        """Encodes with a copy of the tokenizer whose control tokens have unspellable names."""
        backend, names, cut = self._renamed
        if any(mark in piece.text for piece in pieces for mark in MARKS[-2:]):
            raise ValueError(
                "a message contains U+FDEE or U+FDEF, which are not Unicode characters"
            )
        original = {backend.token_to_id(new): self.ids[old] for old, new in names.items()}
        for spelled in (lambda name: name, lambda name: name[0] + cut + name[1:]):
            text = "".join(
                self._pattern.sub(lambda m: names[m[0]], p.text)
                if p.frame
                else self._pattern.sub(lambda m, f=spelled: f(m[0]), p.text)
                for p in pieces
            )
            found = backend.encode(text, add_special_tokens=False).ids
            if not set(found) & set(self.ids.values()):
                break  # otherwise the BPE model merges the letters to the token: separate them
        dropped = backend.token_to_id(cut)
        return [original.get(token, token) for token in found if token != dropped]

    @functools.cached_property
    def _renamed(self) -> tuple[tokenizers.Tokenizer, dict[str, str], str]:
        """The copy, the names of its control tokens, and a token that separates letters."""
        if not self._tokenizer.is_fast:
            raise ValueError(
                f"a message spells a control token, and {type(self._tokenizer).__name__} is not "
                "from the package tokenizers, so it cannot encode that as text"
            )
        content = json.loads(self._tokenizer.backend_tokenizer.to_str())
        flags = {entry["content"]: entry for entry in content["added_tokens"]}
        content["added_tokens"] = [x for name, x in flags.items() if name not in self.ids]
        backend = tokenizers.Tokenizer.from_str(json.dumps(content))
        names = {name: f"{MARKS[-1]}{i}{MARKS[-1]}" for i, name in enumerate(self.ids)}
        cut = MARKS[-2]
        strips = {name: _strips(flags.get(name, {})) for name in names}
        backend.add_special_tokens(
            [AddedToken(new, normalized=False, **strips[old]) for old, new in names.items()]
            + [AddedToken(cut, normalized=False)]
        )
        backend.encode_special_tokens = False
        return backend, names, cut


def _strips(entry: Mapping[str, object]) -> dict[str, bool]:
    """Whether a token of tokenizer.json removes the blanks around it."""
    return {side: bool(entry.get(side)) for side in ("lstrip", "rstrip")}


def _names(tokenizer: PreTrainedTokenizerBase, written: str) -> list[str]:
    """Names of special tokens and of non-blank added tokens that a template writes."""
    added = tokenizer.added_tokens_decoder.values()
    plain = [
        x.content for x in added if not x.special and x.content.strip() and x.content in written
    ]
    special = [x.content for x in added if x.special]
    return list(dict.fromkeys([*tokenizer.all_special_tokens, *special, *plain]))
