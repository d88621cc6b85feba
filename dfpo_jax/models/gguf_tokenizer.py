"""The tokenizer of a GGUF file, built from the file's metadata by the package tokenizers.

`tokenizer.ggml.model` gives the kind: "gpt2" is byte-level BPE, which first cuts a text by the rule
that `tokenizer.ggml.pre` names; "llama" is SentencePiece's BPE, which writes characters without a
token as bytes.

Source: llama.cpp, src/llama-vocab.cpp, which defines the names. The reader of `transformers` gives
other ids in three cases, where it differs from llama.cpp and from the tokenizers that the models
were trained with:

- it cuts texts of "smollm" and similar kinds by the rule of "gpt-2", so blanks before a digit, as
  in "\\n\\n1", become other tokens;
- it builds words of "llama-bpe" only by merges, which do not lead to every token;
- it adds SentencePiece's space before a text only if there is none, and never after a special
  token.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from dfpo_jax.models.gguf import open_file

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # values of tokenizer.ggml.token_type
_SPACE = "\u2581"  # SentencePiece's space
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
# Names of tokenizer.ggml.pre, grouped by their rule for cutting a text.
_LLAMA3_NAMES = ("llama-bpe", "llama3", "llama-v3", "falcon3")
_QWEN2_NAMES = ("qwen2", "deepseek-r1-qwen", "megrez")
_GPT2_NAMES = ("gpt-2", "olmo", "jais", "mpt")
_DIGIT_NAMES = ("smollm", "starcoder", "refact", "command-r", "codeshell")
SUPPORTED = (*_LLAMA3_NAMES, *_QWEN2_NAMES, *_GPT2_NAMES, *_DIGIT_NAMES)


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The values of a file's keys tokenizer.ggml.*.

    Attributes:
      kind: "gpt2" or "llama".
      pre: name of the rule for cutting texts, for "gpt2".
      tokens: the text of each id.
      types: type of each id: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
      merges: pairs joined by a space, in order of priority; () if `scores` imply them.
      scores: score of each id, for "llama".
      special: ids by the names of `transformers` ("bos_token", ...).
      add_bos: whether a text begins with bos.
      add_eos: whether it ends with eos.
      add_space: whether each text between special tokens gets a space first, for "llama".
      chat_template: the template, or "".
    """

    kind: str
    pre: str
    tokens: Sequence[str]
    types: Sequence[int]
    merges: Sequence[str]
    scores: Sequence[float]
    special: dict[str, int]
    add_bos: bool
    add_eos: bool
    add_space: bool
    chat_template: str


def gguf_tokenizer(path: str | os.PathLike) -> PreTrainedTokenizerFast:
    """The tokenizer of a GGUF file, with its chat template and special tokens.

    Raises:
      ImportError: the package gguf is not installed.
      ValueError: there is no such file, it has no tokenizer, or the kind is not supported; names
        the key and the supported kinds.
    """
    found = read_vocabulary(path)
    try:
        backend = _byte_level(found) if found.kind == "gpt2" else _sentence_piece(found)
    except Exception as error:  # the package raises plain Exceptions
        raise ValueError(f"{path}: its tokenizer cannot be built: {error}") from error
    _add_tokens(backend, found)
    _begin_and_end(backend, found)
    names = {name: found.tokens[token] for name, token in found.special.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=found.chat_template or None,
        clean_up_tokenization_spaces=False,
        # The class has defaults that may not be in the vocabulary; None removes them.
        **{"bos_token": None, "eos_token": None, "unk_token": None, "pad_token": None, **names},
    )


def read_vocabulary(path: str | os.PathLike) -> Vocabulary:
    """The tokenizer's keys of a file; errors as for `gguf_tokenizer`."""
    fields = open_file(path).fields

    def get(name: str, default: Any) -> Any:
        field = fields.get(f"tokenizer.{name}")
        return default if field is None else field.contents()

    kind, pre = get("ggml.model", None), get("ggml.pre", "")
    if kind not in ("gpt2", "llama"):
        raise ValueError(f"{path}: tokenizer.ggml.model is {kind!r}; it must be 'gpt2' or 'llama'")
    if kind == "gpt2" and pre not in SUPPORTED:
        raise ValueError(
            f"{path}: tokenizer.ggml.pre is {pre!r}; it must be one of {', '.join(SUPPORTED)}"
        )
    tokens = get("ggml.tokens", [])
    merges, scores = get("ggml.merges", []), get("ggml.scores", [])
    types = get("ggml.token_type", [1] * len(tokens))
    if kind == "gpt2" and not merges or kind == "llama" and not (merges or scores):
        raise ValueError(f"{path}: tokenizer.ggml.merges is missing")
    if not tokens or len(types) != len(tokens) or len(scores) not in (0, len(tokens)):
        raise ValueError(
            f"{path}: tokenizer.ggml has {len(tokens)} tokens, {len(types)} types and "
            f"{len(scores)} scores; they must be as many"
        )
    special = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token = get(f"ggml.{key}_token_id", None)
        if token is not None and not 0 <= token < len(tokens):
            raise ValueError(
                f"{path}: tokenizer.ggml.{key}_token_id is {token}; there are {len(tokens)} tokens"
            )
        if token is not None:
            special[f"{name}_token"] = int(token)
    return Vocabulary(
        kind,
        pre,
        tokens,
        types,
        merges,
        scores,
        special,
        add_bos=bool(get("ggml.add_bos_token", kind == "llama" or pre in _LLAMA3_NAMES)),
        add_eos=bool(get("ggml.add_eos_token", False)),
        add_space=bool(get("ggml.add_space_prefix", kind == "llama")),
        chat_template=get("chat_template", ""),
    )


def _byte_level(found: Vocabulary) -> tokenizers.Tokenizer:
    """Byte-level BPE: tokens are texts over 256 letters, one for each byte."""
    vocabulary = {token: index for index, token in enumerate(found.tokens)}
    whole = found.pre in _LLAMA3_NAMES  # a piece that is a token is not merged
    backend = tokenizers.Tokenizer(
        models.BPE(vocabulary, _pairs(found.merges), ignore_merges=whole)
    )
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if found.pre in (*_LLAMA3_NAMES, *_QWEN2_NAMES):
        split = _QWEN2 if found.pre in _QWEN2_NAMES else _LLAMA3
        cuts = [pre_tokenizers.Split(Regex(split), behavior="isolated"), bytes_]
    else:
        cuts = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
        if found.pre in _DIGIT_NAMES:
            cuts.insert(0, pre_tokenizers.Digits(individual_digits=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentence_piece(found: Vocabulary) -> tokenizers.Tokenizer:
    """SentencePiece's BPE: spaces are letters, and a character without a token becomes bytes."""
    vocabulary = {token: index for index, token in enumerate(found.tokens)}
    merges = _pairs(found.merges) if found.merges else _implied_merges(found, vocabulary)
    unknown = found.special.get("unk_token")
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocabulary,
            merges,
            unk_token=None if unknown is None else found.tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces = [normalizers.Prepend(_SPACE)] if found.add_space else []
    backend.normalizer = normalizers.Sequence([*spaces, normalizers.Replace(" ", _SPACE)])
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if found.add_space:
        steps.append(decoders.Strip(content=" ", left=1))
    backend.decoder = decoders.Sequence(steps)
    return backend


def _pairs(merges: Sequence[str]) -> list[tuple[str, str]]:
    """Merges as pairs, split at the first space that is not the first character."""
    return [(text[: text.index(" ", 1)], text[text.index(" ", 1) + 1 :]) for text in merges]


def _implied_merges(found: Vocabulary, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """The merges that a SentencePiece vocabulary implies, best score first.

    Any two tokens that form a third one may be merged, unless the third is a control token, which
    no text may become. Merges that form the same token are in the order of `transformers`.
    """
    merges = []
    for token, index in vocabulary.items():
        if found.types[index] not in (_NORMAL, _USER_DEFINED):
            continue
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        pairs = [(a, b) for a, b in pairs if a in vocabulary and b in vocabulary]
        pairs.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        merges += [(found.scores[index], *pair) for pair in pairs]
    merges.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    return [(left, right) for _, left, right in merges]


def _add_tokens(backend: tokenizers.Tokenizer, found: Vocabulary) -> None:
    """Adds control tokens as special ones; user-defined ones, such as <think>, as plain ones."""
    named = set(found.special.values())
    for special in (True, False):
        tokens = [
            AddedToken(token, normalized=False, special=special)
            for index, (token, kind) in enumerate(zip(found.tokens, found.types, strict=True))
            if (kind == _CONTROL or index in named) == special
            and (special or kind == _USER_DEFINED)
        ]
        (backend.add_special_tokens if special else backend.add_tokens)(tokens)


def _begin_and_end(backend: tokenizers.Tokenizer, found: Vocabulary) -> None:
    """Adds bos before and eos after each text if the file says so."""
    before = [found.special[n] for n in ("bos_token",) if found.add_bos and n in found.special]
    after = [found.special[n] for n in ("eos_token",) if found.add_eos and n in found.special]
    if before or after:
        names = {token: found.tokens[token] for token in (*before, *after)}
        parts = [*(names[t] for t in before), "$A", *(names[t] for t in after)]
        backend.post_processor = processors.TemplateProcessing(
            single=parts, special_tokens=[(text, token) for token, text in names.items()]
        )
