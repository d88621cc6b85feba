"""Tables of stop texts against a search of the text itself."""

import jax
import numpy as np
import pytest
from tiny import follow, steps, table_model  # noqa: F401

from dfpo_jax.rollout.sampler import Sampler
from dfpo_jax.rollout.sampling import SamplingConfig
from dfpo_jax.rollout.stops import stop_table, token_texts
from dfpo_jax.sharding import create_mesh
from dfpo_jax.tasks.base import Item


class Pieces:
    """A tokenizer of pieces, which like some drops a space at the beginning of a text."""

    def __init__(self, *pieces):
        self.pieces = pieces

    def __len__(self):
        return len(self.pieces)

    def get_vocab(self):
        return {piece: i for i, piece in enumerate(self.pieces)}

    def batch_decode(self, rows, **options):
        return ["".join(self.pieces[i] for i in row).removeprefix(" ") for row in rows]


PIECES = Pieces("x", "a", "b", " ", " a", "ab", "ba", "aab", "abab", "", "xaabaab", "b a")


def test_tokens_have_the_text_that_they_add():
    assert token_texts(PIECES) == list(PIECES.pieces)


@pytest.mark.parametrize("stop", ["a", "ab", "aabaa", "abab", " a", "b ab"])
def test_the_table_finds_what_a_search_finds(stop):
    table = stop_table(PIECES, stop, 16)
    assert table.shape == (len(stop) + 1, 16) and table.max() == len(stop)
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(300):
        state, text = 0, ""
        for token in rng.integers(0, 16, 8):
            piece = PIECES.pieces[token] if token < len(PIECES) else "\ufffd"
            state, text = table[state, token], text + piece
            assert (state == len(stop)) == (stop in text)
            if stop not in text:
                assert text.endswith(stop[:state])
                assert not any(text.endswith(stop[:n]) for n in range(state + 1, len(stop)))
        found += stop in text
    assert 0 < found <= 300


@pytest.mark.slow
def test_decoding_ends_with_the_token_that_completes_the_stop_text(steps):  # noqa: F811
    """1, 2, 3, 4, 1, ... where the second row comes upon "41" after one token, the first never."""
    tokenizer, params = follow("12341")
    model = table_model(20)

    def sample(stop, slots=0, limit=9):
        steps.clear()
        config = SamplingConfig(max_new_tokens=limit, slots=slots)
        sampler = Sampler(model, tokenizer, 1, config, create_mesh(1, 1, 1), stop=stop)
        prompts = sampler.prompts([Item("2", ""), Item("3", "")])
        out = sampler(params, *prompts, jax.random.key(0))
        jax.effects_barrier()
        return sampler.texts(out), out.truncated.tolist(), len(steps)

    assert sample("41") == (["3", ""], [False, False], 3)
    assert sample("41", slots=1) == (["3", ""], [False, False], 3 + 2)
    assert sample("5") == (["341234123", "412341234"], [True, True], 9)
    # What one response has met of the text does not count for the next one in its slot.
    assert sample("1234", slots=1, limit=3) == (["341", "412"], [True, True], 6)
