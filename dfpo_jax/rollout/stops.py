"""Stop texts as tables that sampling reads on the device: an early exit, see `sampler`."""

import functools

import numpy as np
from transformers import PreTrainedTokenizerBase

from dfpo_jax.tokenizers import NO_TOKEN


@functools.lru_cache(maxsize=8)
def stop_table(tokenizer: PreTrainedTokenizerBase, stop: str, vocab_size: int) -> np.ndarray:
    """How many characters of a stop text are matched after each token: [len(stop) + 1, V] int16.

    Entry [s, v] is the length of the longest prefix of `stop` that the text ends with after token
    v, if that length was s before the token. A full match, `len(stop)`, never changes again.
    Source: the automaton of Knuth, Morris and Pratt 1977, section 2, over the characters of tokens.

    The table is an early exit: it misses a stop text with a character that several tokens make
    together, as in byte-level tokenizers, because none of their texts has that character. It also
    counts the space that a response begins with, even if the tokenizer drops it.

    Args:
      tokenizer: the source of the tokens' texts.
      stop: at least one character.
      vocab_size: V; an id without a token has the text `tokenizers.NO_TOKEN`.
    """
    alphabet = {c: i + 1 for i, c in enumerate(dict.fromkeys(stop))}  # 0 is any other character
    step = _automaton(stop, alphabet)
    known, texts = set(tokenizer.get_vocab().values()), token_texts(tokenizer)
    texts = [texts[i] if i in known else NO_TOKEN for i in range(vocab_size)]
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))  # the longest first
    lengths = np.array([len(texts[i]) for i in order])
    reached = np.repeat(np.arange(len(stop) + 1, dtype=np.int16)[:, None], vocab_size, axis=1)
    for place in range(lengths.max(initial=0)):
        rows = int(np.sum(lengths > place))
        met = np.array([alphabet.get(texts[i][place], 0) for i in order[:rows]])
        reached[:, :rows] = step[reached[:, :rows], met[None]]
    table = np.empty_like(reached)
    table[:, order] = reached
    return table


def _automaton(stop: str, alphabet: dict[str, int]) -> np.ndarray:
    """[len(stop) + 1, characters + 1]: the state after one more character."""
    step = np.zeros((len(stop) + 1, len(alphabet) + 1), np.int16)
    step[len(stop)] = len(stop)
    for state in range(len(stop)):
        for character, column in alphabet.items():
            text = stop[:state] + character
            step[state, column] = next(
                n for n in range(len(text), -1, -1) if text.endswith(stop[:n])
            )
    return step


def token_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The text that each token adds after the first one; special tokens give their names."""
    size = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values()))
    decode = functools.partial(
        tokenizer.batch_decode, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    alone = decode([[i] for i in range(size)])
    # Some tokenizers drop a space at the start of a text, so the text starts with a letter.
    first = next((i for i, text in enumerate(alone) if len(text) == 1 and text.isalnum()), None)
    if first is None:
        return alone
    pairs = decode([[first, i] for i in range(size)])
    return [
        pair.removeprefix(alone[first]) if pair.startswith(alone[first]) else text
        for pair, text in zip(pairs, alone, strict=True)
    ]
