"""Prompts padded to the smallest length that holds them: which one, and that it changes nothing."""

from collections import Counter
from dataclasses import replace

import jax
import numpy as np
import pytest
import tiny

from dfpo_jax.models import Transformer
from dfpo_jax.rewards.interface import chain
from dfpo_jax.rollout import prompts as prompts_module
from dfpo_jax.rollout.collect import draw
from dfpo_jax.rollout.sampler import Sampler
from dfpo_jax.rollout.sampling import SamplingConfig
from dfpo_jax.sharding import create_mesh
from dfpo_jax.tasks import Item
from dfpo_jax.tasks.base import Task
from dfpo_jax.tokenizers import character_tokenizer

TOKENIZER = character_tokenizer("123456789+=")
MODEL = Transformer(tiny.DECODER)
LONGEST = 8


class Lengths(Task):
    """Rewards are odd or even lengths of responses."""

    name, reward_range = "lengths", (0.0, 1.0)

    def batch(self, step, size):
        raise NotImplementedError

    items = batch

    def score(self, item, response):
        return len(response) % 2


def make_sampler(*buckets, mesh=(1, 1, 1), **options):
    config = SamplingConfig(max_new_tokens=6, temperature=0.8)
    mesh = create_mesh(*mesh)
    return Sampler(MODEL, TOKENIZER, LONGEST, config, mesh, prompt_buckets=buckets, **options)


def items(*lengths):
    return [Item(("123456789" * 2)[n : 2 * n], "1") for n in lengths]


@pytest.fixture(scope="module")
def params():
    tokens = np.zeros((1, 1), np.int32)
    init = jax.jit(lambda key: MODEL.init(key, tokens, tokens)["params"])
    return tiny.randomised(init(jax.random.key(0)), scale=0.2)


@pytest.mark.parametrize(
    ("lengths", "slots"),
    [([1], 3), ([3, 2], 3), ([1, 4, 2], 5), ([5], 5), ([6], 8), ([1, 8], 8), ([], 3)],
)
def test_prompts_are_padded_to_the_smallest_bucket_that_holds_them(lengths, slots):
    tokens, mask = make_sampler(3, 5).prompts(items(*lengths))
    assert tokens.shape == mask.shape == (len(lengths), slots)
    assert mask.sum(axis=1).tolist() == lengths
    whole_tokens, whole_mask = make_sampler().prompts(items(*lengths))
    assert whole_tokens.shape == (len(lengths), LONGEST)
    np.testing.assert_array_equal(tokens, whole_tokens[:, LONGEST - slots :])
    np.testing.assert_array_equal(mask, whole_mask[:, LONGEST - slots :])


def test_too_long_is_too_long_for_the_last_length():
    with pytest.raises(ValueError, match="has 9 tokens; prompt_length is 8"):
        make_sampler(3, 5).prompts(items(1, 9))
    tokens, mask = make_sampler(3, 5, truncate_prompts=True).prompts(items(2, 9))
    assert mask.sum(axis=1).tolist() == [2, 8]
    assert TOKENIZER.decode(tokens[1]) == items(9)[0].prompt[1:]


@pytest.mark.parametrize("greedy", [False, True])
def test_a_bucket_changes_no_response(params, greedy):
    lengths = (1, 3, 2, 4)
    outputs = []
    for buckets in ((), (4,), (3, 5)):
        sampler = make_sampler(*buckets)
        prompts, key = sampler.prompts(items(*lengths)), jax.random.key(1)
        out = sampler(params, *prompts, key, num_samples=4, greedy=greedy)
        outputs.append((prompts[0].shape[1], out))
    assert [slots for slots, _ in outputs] == [8, 4, 5]
    expected = outputs[0][1]
    assert len({tuple(row) for row in expected.tokens.tolist()}) >= (4 if greedy else 14)
    for _, found in outputs[1:]:
        for name in ("tokens", "mask", "truncated"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-5)


def test_rollouts_differ_in_padding_alone(params):
    def run(*buckets):
        sampler = make_sampler(*buckets, mesh=(2, 2, 2))
        key, prompts = jax.random.key(2), items(2, 1, 3)
        return draw(sampler, params, Lengths(), chain([]), prompts, key, 5, num_samples=2)

    (short, texts, _), (whole, same, _) = run(3, 5), run()
    assert texts == same and (short.prompt_tokens.shape, whole.prompt_tokens.shape) == (
        (6, 3),
        (6, 8),
    )
    assert not whole.prompt_mask[:, :5].any()
    for name in ("tokens", "mask", "truncated", "rewards", "clean_rewards", "groups"):
        np.testing.assert_array_equal(getattr(short, name), getattr(whole, name))
    np.testing.assert_array_equal(short.prompt_tokens, whole.prompt_tokens[:, 5:])
    np.testing.assert_allclose(short.log_probs, whole.log_probs, atol=1e-5)


def test_prompts_are_encoded_once_and_shortened_ones_are_counted(params, monkeypatch):
    encoded, real = [], prompts_module.all_prompt_ids

    def counted(tokenizer, chat, items, begin):
        encoded.extend(item.prompt for item in items)
        return real(tokenizer, chat, items, begin)

    monkeypatch.setattr(prompts_module, "all_prompt_ids", counted)
    for truncate, lengths, shortened in (
        (True, (9, 2, 9), 2),
        (True, (8,), 0),
        (False, (8,), None),
    ):
        sampler, tally = make_sampler(3, truncate_prompts=truncate), Counter()
        encoded.clear()
        prompts, key = items(*lengths), jax.random.key(0)
        draw(sampler, params, Lengths(), chain([]), prompts, key, 0, num_samples=2, tally=tally)
        assert encoded == [item.prompt for item in prompts]
        assert tally.get("rollout/shortened_prompts") == shortened


def test_tokens_of_prompts_are_remembered(monkeypatch):
    asked, real = [], prompts_module.encode_all
    sampler = replace(make_sampler(3), tokenizer=character_tokenizer("123456789"))

    def counted(tokenizer, texts):
        asked.append(list(texts))
        return real(tokenizer, texts)

    monkeypatch.setattr(prompts_module, "encode_all", counted)
    monkeypatch.setattr(prompts_module, "_KEPT", 3)
    first, second = items(1, 2, 1), items(2, 3, 4)
    for prompts in (first, second, second, first):
        tokens, mask = sampler.prompts(prompts)
        for item, row, kept in zip(prompts, tokens, mask, strict=True):
            assert row[kept > 0].tolist() == sampler.tokenizer.encode(item.prompt)
    a, b, c, d = (item.prompt for item in items(1, 2, 3, 4))
    assert asked == [[a, b], [c, d], [b], [a]]  # what is remembered is forgotten at once
