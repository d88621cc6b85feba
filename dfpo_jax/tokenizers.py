"""Tokenizers: one of characters built in memory, published ones, strict encoding, padding.

Everything here runs on the host and returns Python lists or numpy arrays. Any `transformers`
tokenizer works wherever one is asked for; `character_tokenizer` is the small default.
"""

import functools
import pathlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dfpo_jax.models import pretrained
from dfpo_jax.models.gguf_tokenizer import gguf_tokenizer
from dfpo_jax.published_files import read_json, refuse_pointer

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
NO_TOKEN = "\ufffd"  # the text of an id that a tokenizer has no token for


def character_tokenizer(alphabet: str, *, pad_is_eos: bool = False) -> PreTrainedTokenizerFast:
    """Builds a tokenizer with one token per character of `alphabet`, with no file and no network.

    Ids: the special tokens first (`<pad>`, `<bos>`, `<eos>`, `<unk>`), then the characters in the
    order of `alphabet`. Nothing is added around a text on encoding, and decoding joins characters
    without spaces, so `decode(encode(text)) == text`. A text that spells a special token, such as
    "<eos>", is encoded as its characters, never as the special token.

    Args:
      alphabet: the characters, each once.
      pad_is_eos: there is no `<pad>` token and the pad id is the `<eos>` id, as in many published
        models; masks must then come from lengths, never from `tokens != pad_id`.

    Raises:
      ValueError: the alphabet is empty or repeats a character.
    """
    if not alphabet:
        raise ValueError("alphabet is empty; it must hold at least one character")
    repeated = [character for character, count in Counter(alphabet).items() if count > 1]
    if repeated:
        raise ValueError(f"alphabet repeats {repeated}; each character must occur once")
    special = [EOS, BOS, UNK] if pad_is_eos else [PAD, BOS, EOS, UNK]
    vocabulary = {token: index for index, token in enumerate([*special, *alphabet])}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=UNK))
    any_character = tokenizers.Regex(r"[\s\S]")
    model.pre_tokenizer = tokenizers.pre_tokenizers.Split(any_character, behavior="isolated")
    model.decoder = tokenizers.decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token=EOS if pad_is_eos else PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
    )


def pretrained_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A published tokenizer; one without a pad token pads with eos.

    `transformers` reads a directory or hub id, `models.gguf_tokenizer` a GGUF file.

    Args:
      name: a directory, a hub id, a path ending in .gguf, or "smollm2".

    Raises:
      ImportError: a package that reads the file is not installed.
      ValueError: there is no such tokenizer, a file of it is a git-lfs pointer, cut off or no JSON,
        or it has no eos token; one line.
    """
    if pretrained.is_gguf(name):
        tokenizer = gguf_tokenizer(pretrained.locate(name))
    else:
        tokenizer = _from_transformers(name)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"tokenizer {name!r} has no eos token; responses could not end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _from_transformers(name: str) -> PreTrainedTokenizerBase:
    directory = pathlib.Path(name)
    for path in sorted(directory.iterdir()) if directory.is_dir() else []:
        # A template or a list of words that is a pointer would be read as the text it is.
        if path.is_file() and path.suffix != ".safetensors":
            refuse_pointer(path)
    try:
        return AutoTokenizer.from_pretrained(name)
    except ImportError:
        raise
    except Exception as error:  # the package tokenizers raises plain Exceptions
        for path in sorted(directory.glob("*.json")) if directory.is_dir() else []:
            read_json(path)
        words = " ".join(str(error).split())
        raise ValueError(f"no tokenizer {name!r}: {words}") from error


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of `text`, with no special token added; a special token spelled in it is text.

    Raises:
      ValueError: the tokenizer has no token for some character of `text`; the message names the
        character and its position.
    """
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    unknown = tokenizer.unk_token_id
    # Some published tokenizers let an ordinary token double as the unknown one.
    if unknown is None or unknown == tokenizer.eos_token_id or unknown not in ids:
        return ids
    for position, character in enumerate(text):
        if unknown in tokenizer.encode(character, add_special_tokens=False):
            raise ValueError(
                f"character {character!r} at position {position} of {text!r} is not in the "
                "tokenizer's alphabet"
            )
    raise ValueError(f"the tokenizer has no token for part of {text!r}")


BEGINNINGS = ("auto", "bos", "nothing")


@functools.lru_cache(maxsize=8)
def beginning(tokenizer: PreTrainedTokenizerBase, how: str = "auto") -> tuple[int, ...]:
    """Token ids that a raw text begins with.

    Args:
      tokenizer: of the text.
      how: "auto", as the tokenizer itself begins a text: with bos for Llama and Gemma, which write
        garbage without it, with nothing for Qwen; "bos", its bos token; or "nothing".

    Raises:
      ValueError: `how` is none of these, or "bos" and the tokenizer has none.
    """
    if how not in BEGINNINGS:
        raise ValueError(f"begin is {how!r}; it must be one of {', '.join(BEGINNINGS)}")
    if how == "bos" and tokenizer.bos_token_id is None:
        raise ValueError("begin is 'bos'; the tokenizer has no bos token")
    if how != "auto":
        return (tokenizer.bos_token_id,) if how == "bos" else ()
    whole, bare = tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=False)
    places = range(len(whole) - len(bare) + 1)
    start = next((n for n in places if whole[n : n + len(bare)] == bare), 0)
    return tuple(whole[:start])


def decode(tokenizer: PreTrainedTokenizerBase, tokens: np.ndarray) -> str:
    """The text of token ids [T], special tokens by their names.

    A model may have ids that its tokenizer has no token for, where its vocabulary is padded; each
    is `NO_TOKEN` here, U+FFFD, while `tokenizer.decode` leaves them out.
    """
    known = _known_ids(tokenizer)
    missing = ~known[np.minimum(tokens, len(known) - 1)]
    if not missing.any():
        return tokenizer.decode(
            tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
    pieces = [
        NO_TOKEN if absent else tokenizer.convert_ids_to_tokens(token)
        for token, absent in zip(tokens.tolist(), missing, strict=True)
    ]
    return tokenizer.convert_tokens_to_string(pieces)


@functools.lru_cache(maxsize=8)
def _known_ids(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Whether there is a token of each id up to the largest, and False for the next."""
    ids = list(tokenizer.get_vocab().values())
    known = np.zeros(max(ids) + 2, bool)
    known[ids] = True
    return known


def left_pad(
    sequences: Sequence[Sequence[int]], length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pads on the left, as prompts are: (tokens [B, length] int32, mask [B, length] float32).

    The mask is 1 on the given tokens, decided by their number and not by their ids.

    Raises:
      ValueError: a sequence is longer than `length`.
    """
    return _pad(sequences, length, pad_id, left=True)


def right_pad(
    sequences: Sequence[Sequence[int]], length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pads on the right, as responses are; otherwise the same as `left_pad`.

    Raises:
      ValueError: a sequence is longer than `length`.
    """
    return _pad(sequences, length, pad_id, left=False)


def _pad(
    sequences: Sequence[Sequence[int]], length: int, pad_id: int, *, left: bool
) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.full((len(sequences), length), pad_id, np.int32)
    mask = np.zeros((len(sequences), length), np.float32)
    for row, sequence in enumerate(sequences):
        count = len(sequence)
        if count > length:
            raise ValueError(
                f"sequence {row} has {count} tokens, which is more than the limit length={length}"
            )
        where = slice(length - count, length) if left else slice(0, count)
        tokens[row, where] = sequence
        mask[row, where] = 1.0
    return tokens, mask
