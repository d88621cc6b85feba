"""Tokenizers: a character one built in memory, published ones, strict encoding and padding.

Everything here runs on the host and returns Python lists or numpy arrays. Any `transformers`
tokenizer works; `character_tokenizer` is the small default.
"""

import functools
import pathlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dfpo_jax.models import pretrained
from dfpo_jax.models.gguf_tokenizer import gguf_tokenizer
from dfpo_jax.published_files import read_json, refuse_pointer

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
NO_TOKEN = "\ufffd"  # the text of an id without a token


def character_tokenizer(alphabet: str, *, pad_is_eos: bool = False) -> PreTrainedTokenizerFast:
    """Builds a tokenizer with one token per character of `alphabet`, without files or network.

    Ids: the special tokens first (`<pad>`, `<bos>`, `<eos>`, `<unk>`), then the characters in the
    order of `alphabet`. Encoding adds nothing around a text, and decoding joins characters without
    spaces, so `decode(encode(text)) == text`. A text that spells a special token, such as "<eos>",
    is encoded as characters, never as the special token.

    Args:
      alphabet: the characters, each once.
      pad_is_eos: whether the pad id is the `<eos>` id and there is no `<pad>`, as in many published
        models; masks must then come from lengths, never from `tokens != pad_id`.

    Raises:
      ValueError: the alphabet is empty or repeats a character.
    """
    if not alphabet:
        raise ValueError("alphabet is empty; it must have at least one character")
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
    """A published tokenizer; if it has no pad token, it pads with eos.

    `transformers` reads a directory or hub id, `models.gguf_tokenizer` a GGUF file.

    Args:
      name: a directory, a hub id, a path ending in .gguf, or "smollm2".

    Raises:
      ImportError: a package that reads the file is not installed.
      ValueError: there is no such tokenizer, one of its files is a git-lfs pointer, cut off or not
        JSON, or it has no eos token; in one line.
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
        # A pointer in place of a template or word list would be read as if it were one.
        if path.is_file() and path.suffix != ".safetensors":
            refuse_pointer(path)
    from transformers import AutoTokenizer  # imports PyTorch where there is one

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
    """Token ids of `text`, without special tokens; a special token spelled in it is text.

    Raises:
      ValueError: the tokenizer has no token for some character of `text`; the message names the
        character and its position.
    """
    return encode_all(tokenizer, [text])[0]


def encode_all(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """`encode` of every text, in one call, which takes a fraction of the time.

    Raises:
      ValueError: as `encode`.
    """
    if not texts:
        return []
    rows = tokenizer(
        list(texts),
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]
    unknown = tokenizer.unk_token_id
    # Some published tokenizers also use an ordinary token, such as eos, as the unknown one.
    if unknown is not None and unknown != tokenizer.eos_token_id:
        for text, ids in zip(texts, rows, strict=True):
            if unknown in ids:
                _refuse(tokenizer, text)
    return rows


def _refuse(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    unknown = tokenizer.unk_token_id
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
      tokenizer: the text's tokenizer.
      how: "auto" for the tokenizer's own beginning, which is bos for Llama and Gemma (they write
        garbage without it) and nothing for Qwen; "bos" for its bos token; or "nothing".

    Raises:
      ValueError: `how` is none of these, or it is "bos" and the tokenizer has no bos token.
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
    """The text of token ids [T], with the names of special tokens.

    A model with a padded vocabulary has ids without a token. They become `NO_TOKEN`, U+FFFD, while
    `tokenizer.decode` would omit them.
    """
    return decode_all(tokenizer, [tokens])[0]


def decode_all(tokenizer: PreTrainedTokenizerBase, rows: Sequence[np.ndarray]) -> list[str]:
    """`decode` of every row, in one call, which takes half the time."""
    if not len(rows):
        return []
    known = _known_ids(tokenizer)
    ends = np.cumsum([len(row) for row in rows])
    tokens = np.concatenate(rows)
    missing = ~known[np.minimum(tokens, len(known) - 1)]
    tokens = np.where(missing, np.argmax(known), tokens)
    lists = [row.tolist() for row in np.split(tokens, ends[:-1])]
    texts = tokenizer.batch_decode(
        lists, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    for row in np.unique(np.searchsorted(ends, np.flatnonzero(missing), side="right")):
        absent = missing[ends[row] - len(lists[row]) : ends[row]]
        pieces = [
            NO_TOKEN if no_token else tokenizer.convert_ids_to_tokens(token)
            for token, no_token in zip(lists[row], absent, strict=True)
        ]
        texts[row] = tokenizer.convert_tokens_to_string(pieces)
    return texts


@functools.lru_cache(maxsize=8)
def _known_ids(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Whether each id up to the largest has a token, and False for the next id."""
    ids = list(tokenizer.get_vocab().values())
    known = np.zeros(max(ids) + 2, bool)
    known[ids] = True
    return known


def left_pad(
    sequences: Sequence[Sequence[int]], length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pads prompts on the left: (tokens [B, length] int32, mask [B, length] float32).

    The mask is 1 on the given tokens, and depends only on their number, not on their ids.

    Raises:
      ValueError: a sequence is longer than `length`.
    """
    return _pad(sequences, length, pad_id, left=True)


def right_pad(
    sequences: Sequence[Sequence[int]], length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pads responses on the right; otherwise the same as `left_pad`.

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
