"""Failing verifiers and shortened prompts in a rollout: counted, never fatal."""

from collections import Counter

import jax
import numpy as np
import pytest
from tiny import follow, table_model, table_params

from dfpo_jax.rewards import Rewards
from dfpo_jax.rewards.length import Length
from dfpo_jax.rollout.collect import draw
from dfpo_jax.rollout.demonstrations import demonstrations
from dfpo_jax.rollout.sampler import Sampler
from dfpo_jax.rollout.sampling import SamplingConfig
from dfpo_jax.rollout.verify import score
from dfpo_jax.sharding import create_mesh
from dfpo_jax.tasks import Item
from dfpo_jax.tasks.base import Task, Verdict, VerifierFailure
from dfpo_jax.tokenizers import character_tokenizer


class Judge(Task):
    """Fails on the odd items."""

    name, reward_range = "judge", (0.0, 1.0)

    def batch(self, step, size):
        return self.items(size)

    def items(self, count):
        return [Item("12345"[: 1 + i], "1", index=i) for i in range(count)]

    def score(self, item, response):
        return 1.0

    def judge(self, items, responses):
        failed = Verdict(0.25, "error", "TypeError: it returned a dict")
        kinds = [Verdict(1.0), failed, Verdict(1.0), Verdict(0.5, "timeout")]
        return [kinds[item.index % 4] for item in items]


def test_failures_are_added_to_the_tally_and_keep_their_default_reward():
    task, tally = Judge(), Counter()
    items = task.items(4)
    rewards = score(task, items, ["x"] * 8, tally)
    np.testing.assert_array_equal(rewards, [1, 1, 0.25, 0.25, 1, 1, 0.5, 0.5])
    assert rewards.dtype == np.float32
    assert tally == {"verifier/errors": 2, "verifier/timeouts": 2}
    score(task, items[:1], ["x"], tally)
    assert tally["verifier/errors"] == 2


def test_more_failures_than_allowed_stop_the_run_with_the_first():
    task = Judge()
    items = task.items(4)
    for allowed in (0.5, 1.0):
        task.most_failures = allowed
        score(task, items, ["x"] * 8, Counter())
    task.most_failures = 0.49
    with pytest.raises(VerifierFailure) as stopped:
        score(task, items, ["x"] * 8, Counter())
    assert str(stopped.value) == (
        "the verifier of judge failed on 4 of 8 responses, more than verifier.most_failures=0.49 "
        "allows; the first: TypeError: it returned a dict"
    )
    score(task, items, ["x"] * 8)  # evaluation counts no failures


def test_prompts_that_are_too_long_lose_their_first_tokens_and_are_counted():
    tokenizer = character_tokenizer("12345")
    mesh = create_mesh(1, 1, 1)
    config = SamplingConfig(max_new_tokens=2)
    sampler = Sampler(table_model(20), tokenizer, 3, config, mesh, truncate_prompts=True)
    items = Judge().items(5)
    tokens, mask = sampler.prompts(items)
    assert [tokenizer.decode(row[m > 0]) for row, m in zip(tokens, mask, strict=True)] == [
        "1",
        "12",
        "123",
        "234",
        "345",
    ]
    strict = Sampler(table_model(20), tokenizer, 3, config, mesh)
    with pytest.raises(ValueError, match="4 tokens; prompt_length is 3"):
        strict.prompts(items)


def test_an_empty_prompt_begins_with_the_token_that_begins_a_text():
    tokenizer = character_tokenizer("12345")
    sampler = Sampler(
        table_model(20), tokenizer, 3, SamplingConfig(max_new_tokens=4), create_mesh(1, 1, 1)
    )
    tokens, mask = sampler.prompts([Item("", ""), Item("12", "")])
    assert mask.sum(axis=1).tolist() == [1, 2] and tokens[0, -1] == tokenizer.bos_token_id
    rollout = demonstrations(tokenizer, [Item("", "3")], prompt_length=2, response_length=2)
    assert rollout.prompt_mask.tolist() == [[0.0, 1.0]]


def test_a_second_eos_ends_a_response():
    tokenizer = character_tokenizer("12345")
    one, two = tokenizer.convert_tokens_to_ids(["1", "2"])
    table = np.full((20, 20), -50.0)
    table[:, one] = 0.0
    table[one] = -50.0
    table[one, two] = 0.0  # 1 then 2, again and again
    table[two, one] = 0.0
    config = SamplingConfig(max_new_tokens=4)
    for ends, text, truncated in (((), "1212", True), ((2, two), "1", False)):
        sampler = Sampler(table_model(20), tokenizer, 3, config, create_mesh(1, 1, 1), ends)
        prompt = sampler.prompts([Item("3", "")])
        out = sampler(table_params(table), *prompt, jax.random.key(0))
        assert sampler.texts(out) == [text] and out.truncated.tolist() == [truncated]


def test_a_stop_text_ends_a_response_and_is_cut_off():
    tokenizer, params = follow("12345")
    config = SamplingConfig(max_new_tokens=4)
    sampler = Sampler(table_model(20), tokenizer, 3, config, create_mesh(1, 1, 1), stop="34")
    out = sampler(params, *sampler.prompts([Item("1", ""), Item("4", "")]), jax.random.key(0))
    assert sampler.texts(out) == ["2", "5555"]
    assert out.mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert out.truncated.tolist() == [False, True]
    assert tokenizer.decode(out.tokens[0][:3]) == "234"
    assert out.tokens[0, 3] == tokenizer.pad_token_id and out.log_probs[0, 3] == 0.0
    plain = Sampler(table_model(20), tokenizer, 3, config, create_mesh(1, 1, 1))
    assert plain.texts(plain(params, *plain.prompts([Item("1", "")]), jax.random.key(0))) == [
        "2345"
    ]


def test_a_rollout_is_penalised_in_what_is_learned_and_not_in_what_is_reported():
    tokenizer, params = follow("12345")
    sampler = Sampler(
        table_model(20), tokenizer, 3, SamplingConfig(max_new_tokens=4), create_mesh(1, 1, 1)
    )
    task = Judge()
    rewards = Rewards(length=Length(buffer=2, scale=0.5)).build(task.reward_range)
    items, key = [Item("1", "")], jax.random.key(0)
    rollout = draw(sampler, params, task, rewards, items, key, 0, num_samples=1).rollout
    np.testing.assert_allclose(rollout.rewards, [0.5])
    np.testing.assert_allclose(rollout.clean_rewards, [1.0])
