"""Prompts that share rows when the model reads them: the responses are those of padded prompts."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest
import tiny

from dfpo_jax.models import Transformer
from dfpo_jax.rollout import prefill as prefill_module
from dfpo_jax.rollout.generate import generate
from dfpo_jax.rollout.partial import Partial, first_unfinished, take
from dfpo_jax.rollout.sampler import Sampler
from dfpo_jax.rollout.sampling import SamplingConfig
from dfpo_jax.sharding import create_mesh, mesh_context, put_batch
from dfpo_jax.tasks.base import Item
from dfpo_jax.tokenizers import character_tokenizer

MODEL, SLOTS = Transformer(tiny.DECODER), 9
PADDED = SamplingConfig(max_new_tokens=6)
PACKED = dataclasses.replace(PADDED, prefill_rows=1, pack_prompts=True)


@pytest.fixture(scope="module")
def policy():
    tokens = np.zeros((1, 1), np.int32)
    return tiny.randomised(MODEL.init(jax.random.key(0), tokens, tokens)["params"], scale=0.2)


def assert_same(found, expected):
    for name in ("tokens", "mask", "truncated"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-5)
    assert len(set(expected.mask.sum(axis=1))) > 3


def responses(params, lengths, config, mesh):
    """Two to each of some prompts, whose lengths are given."""
    rng, mesh = np.random.default_rng(0), create_mesh(*mesh)
    tokens = rng.integers(2, tiny.VOCAB, (len(lengths), SLOTS)).astype(np.int32)
    mask = (np.arange(SLOTS)[None] >= SLOTS - np.array(lengths)[:, None]).astype(np.float32)
    options = {"config": config, "eos_ids": (0, 1, 2), "pad_id": 3, "num_samples": 2}
    with mesh_context(mesh):
        inputs = (params, *put_batch((tokens, mask), mesh), jax.random.key(1))
        return jax.device_get(jax.jit(partial(generate, MODEL, **options))(*inputs))


@pytest.mark.parametrize(
    ("mesh", "rows"), [((1, 1, 1), 1), ((1, 1, 1), 99), ((2, 2, 2), 4)], ids=str
)
def test_responses_are_those_of_padded_prompts(policy, mesh, rows):
    """Empty prompts, full ones, and twelve of one token, which fill a row's places."""
    lengths = [9, 0, 4, 7, *[2] * 12, 9, 5, 1, 3]
    config = dataclasses.replace(PACKED, prefill_rows=rows)
    assert_same(responses(policy, lengths, config, mesh), responses(policy, lengths, PADDED, mesh))


@pytest.mark.parametrize(("lengths", "pieces"), [([2] * 16, 2), ([9] * 4, 4), ([5, 5, 5, 1], 2)])
def test_rows_that_hold_prompts_are_read_and_no_others(policy, lengths, pieces, monkeypatch):
    """A row has nine places and holds eight prompts; the last token of a prompt is read later."""
    read = []

    def pack(tokens, valid):
        jax.debug.callback(lambda x: read.append(int(x)), valid.sum())
        return real(tokens, valid)

    real = prefill_module.pack
    monkeypatch.setattr(prefill_module, "pack", pack)
    responses(policy, lengths, PACKED, (1, 1, 1))
    jax.effects_barrier()
    assert len(read) == pieces and sum(read) == sum(lengths) - len(lengths)


@pytest.mark.slow
def test_partial_rollouts_read_packed_prompts_and_what_was_written(policy):
    """A round reads the responses so far anew, which are of all lengths."""
    tokenizer = character_tokenizer("0123456789")

    def batch(step, size):
        return [Item("7" * (1 + (step + n) % 3), "", index=10 * step + n) for n in range(size)]

    def rounds(config):
        sampler = Sampler(MODEL, tokenizer, 3, config, create_mesh(1, 1, 1))
        unfinished = first_unfinished(Partial(2, 2), 3, 2, 6, sampler.top)
        for step in range(3):
            key, sizes = jax.random.key(step), {"tokens": 2, "prompts": 3, "samples": 2}
            taken = take(sampler, policy, batch, unfinished, key, step, **sizes)
            unfinished = taken.unfinished
            yield taken.responses

    packed, padded = (
        jax.tree.map(lambda *x: np.concatenate(x), *rounds(config)) for config in (PACKED, PADDED)
    )
    assert_same(packed, padded)


def test_packed_rows_need_a_number_of_them():
    with pytest.raises(ValueError, match="pack_prompts is True and prefill_rows is 0; it must be"):
        SamplingConfig(pack_prompts=True)
