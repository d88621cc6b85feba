"""From prompts to scored rollouts, with a policy that follows a table."""

import jax
import numpy as np
import pytest
import tiny
from tiny import traced  # noqa: F401

from dfpo_jax.rewards import Rewards
from dfpo_jax.rewards.flip import Flip
from dfpo_jax.rewards.gaussian import Gaussian
from dfpo_jax.rollout import verify
from dfpo_jax.rollout.collect import draw
from dfpo_jax.rollout.demonstrations import demonstrations
from dfpo_jax.rollout.sampler import Sampler
from dfpo_jax.rollout.sampling import SamplingConfig
from dfpo_jax.rollout.verify import score
from dfpo_jax.sharding import create_mesh
from dfpo_jax.tasks.base import Item, Task
from dfpo_jax.tokenizers import character_tokenizer
from dfpo_jax.types import Generation

ALPHABET = "0123456789+="
PROMPT, RESPONSE = 5, 3


class Table(Task):
    """Rewards by response text."""

    name = "table"

    def __init__(self, rewards, reward_range=(0.0, 1.0)):
        self.rewards, self.reward_range = rewards, reward_range
        self.scored = []

    def batch(self, step, size):
        raise NotImplementedError

    def items(self, count):
        raise NotImplementedError

    def score(self, item, response):
        self.scored.append((item.prompt, response))
        return self.rewards[response]


# What follows each character, greedily and nearly surely: "+" repeats itself for ever.
FOLLOW = {"=": "4", "4": "2", "2": "<eos>", "3": "<eos>", "+": "+"}
ITEMS = [Item("1+1=", "42"), Item("33", ""), Item("7+", "+++")]
TEXTS = ["42", "", "+++"]
REWARDS = {"42": 0.75, "": 0, "+++": 1}


def make_sampler(pad_is_eos=False, mesh=(1, 1, 1), **options):
    tokenizer = character_tokenizer(ALPHABET, pad_is_eos=pad_is_eos)
    vocab = len(tokenizer)
    table = np.where(np.eye(vocab) > 0, 0.0, -50.0)
    for before, after in FOLLOW.items():
        row = tokenizer.convert_tokens_to_ids(before)
        table[row] = -50.0
        table[row, tokenizer.convert_tokens_to_ids(after)] = 0.0
    config = SamplingConfig(max_new_tokens=RESPONSE, **options)
    sampler = Sampler(tiny.table_model(vocab), tokenizer, PROMPT, config, create_mesh(*mesh))
    return sampler, tiny.table_params(table)


@pytest.fixture(scope="module", params=[False, True], ids=["pad", "pad_is_eos"])
def plain(request):
    return make_sampler(request.param)


def run(sampler, params, task, num_samples=2, step=3, **links):
    rewards = Rewards(**links).build(task.reward_range)
    key = jax.random.key(0)
    return draw(sampler, params, task, rewards, ITEMS, key, step, num_samples=num_samples)


def test_a_draw_lays_out_rows_by_prompt(plain):
    sampler, params = plain
    task = Table(REWARDS)
    rollout, texts, items = run(sampler, params, task)
    assert items == ITEMS and rollout.samples == 2
    assert texts == [text for text in TEXTS for _ in range(2)]
    assert task.scored == [
        (item.prompt, text) for item, text in zip(ITEMS, TEXTS, strict=True) for _ in range(2)
    ]
    assert rollout.groups.tolist() == [0, 0, 1, 1, 2, 2]
    for row, item in enumerate(item for item in ITEMS for _ in range(2)):
        ids = sampler.tokenizer.encode(item.prompt)
        pad = [sampler.tokenizer.pad_token_id] * (PROMPT - len(ids))
        assert rollout.prompt_tokens[row].tolist() == pad + ids
        assert rollout.prompt_mask[row].tolist() == [0.0] * len(pad) + [1.0] * len(ids)
    # "42" and its end, an end alone, and three tokens cut off.
    assert rollout.mask[::2].tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 1]]
    assert rollout.truncated.tolist() == [False] * 4 + [True] * 2
    assert rollout.tokens[2, 0] == sampler.tokenizer.eos_token_id
    np.testing.assert_allclose(rollout.log_probs, 0.0, atol=1e-6)
    for leaf in jax.tree.leaves(rollout):
        assert len(leaf) == 6


def test_rewards_stay_fractions_in_float32(plain):
    rollout = run(*plain, Table(REWARDS)).rollout
    for rewards in (rollout.rewards, rollout.clean_rewards):
        assert rewards.dtype == np.float32
        assert rewards.tolist() == [0.75, 0.75, 0.0, 0.0, 1.0, 1.0]


def test_noise_spares_the_clean_rewards(plain):
    flip = Flip(false_positive=1.0, false_negative=1.0)
    rollout = run(*plain, Table(REWARDS), flip=flip).rollout
    assert rollout.clean_rewards.tolist() == [0.75, 0.75, 0.0, 0.0, 1.0, 1.0]
    assert rollout.rewards.tolist() == [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    # The ends of the declared range, and the step, reach the noise.
    rollout = run(*plain, Table(REWARDS, reward_range=(-1.0, 2.0)), flip=flip).rollout
    assert rollout.rewards.tolist() == [-1.0, -1.0, 2.0, 2.0, -1.0, -1.0]
    task, gaussian = Table(REWARDS, reward_range=None), Gaussian(std=0.5, seed=4)
    rollout = run(*plain, task, step=9, gaussian=gaussian).rollout
    normal = np.random.default_rng([4, 0x6E6F6973, 9, 1]).standard_normal(6)
    expected = rollout.clean_rewards + (0.5 * normal).astype(np.float32)
    np.testing.assert_array_equal(rollout.rewards, expected)
    assert np.all(rollout.rewards != rollout.clean_rewards)


class Recorder:
    """Stands in for a sampler: the key it was called with, and one token per response."""

    config = SamplingConfig()

    def prompts(self, items, tally=None):
        return np.zeros((len(items), 1), np.int32), np.ones((len(items), 1), np.float32)

    def __call__(self, params, tokens, mask, key, *, num_samples, **options):
        self.key, rows = key, len(tokens) * num_samples
        ones = np.ones((rows, 1), np.float32)
        return Generation(ones.astype(np.int32), ones, 0 * ones, np.zeros(rows, bool))

    def texts(self, generation):
        return ["4"] * len(generation.tokens)


def test_a_later_round_has_random_numbers_of_its_own():
    key, keys, rewards = jax.random.key(0), [], []
    chain = Rewards(gaussian=Gaussian(std=1.0)).build((0.0, 1.0))
    for round in (0, 1, 2):
        sampler = Recorder()
        drawn = draw(
            sampler, None, Table({"4": 0.5}), chain, ITEMS, key, 7, num_samples=2, round=round
        )
        keys.append(sampler.key)
        rewards.append(drawn.rollout.rewards)
    assert keys[0] is key  # an iteration of one round is that of a run without rounds
    assert keys[1] == jax.random.fold_in(key, 1) and keys[2] == jax.random.fold_in(key, 2)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.all(rewards[one] != rewards[other])


@pytest.mark.parametrize("reward", [float("nan"), float("inf")])
def test_rewards_that_are_not_finite_name_the_item(reward):
    task = Table({"4": 0.5, "5": reward})
    assert score(Table({"4": 0.5}), [Item("p", "")], ["4", "4"]).tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match=r"'table' gave reward (nan|inf) for prompt 'b'.*'5'"):
        score(task, [Item("a", ""), Item("b", "")], ["4", "4", "4", "5"])


def test_a_reward_that_another_process_refuses_is_refused_here(monkeypatch):
    monkeypatch.setattr(verify, "own_rows", lambda count: slice(0, 2))
    others = np.array([0.25, 1.5], np.float32)
    monkeypatch.setattr(verify, "gather_rows", lambda rows, count: np.concatenate([rows, others]))
    items, task = [Item("a", ""), Item("b", "")], Table({"4": 0.5}, reward_range=None)
    assert score(task, items, ["4", "4", "5", "6"]).tolist() == [0.5, 0.5, 0.25, 1.5]
    task.reward_range = (0.0, 1.0)
    with pytest.raises(ValueError, match="gave reward 1.5 for prompt 'b' and response '6'"):
        score(task, items, ["4", "4", "5", "6"])


def test_prompts_that_do_not_fit_are_refused(plain):
    sampler, _ = plain
    with pytest.raises(ValueError, match="has 6 tokens.*5"):
        sampler.prompts([Item("1+1=", ""), Item("123456", "")])
    with pytest.raises(ValueError, match="'x'"):
        sampler.prompts([Item("1x", "")])


def test_special_tokens_do_not_vanish_from_texts(plain):
    sampler, _ = plain
    rollout = run(*plain, Table(REWARDS), num_samples=1).rollout
    ids = sampler.tokenizer.convert_tokens_to_ids(["4", "<bos>", "2"])
    rollout = rollout.replace(tokens=np.asarray([ids] * 3), mask=np.ones((3, 3)))
    assert sampler.texts(rollout.replace(truncated=np.ones(3, bool))) == ["4<bos>2"] * 3


def test_ids_without_a_token_do_not_vanish_from_texts(plain):
    sampler, _ = plain
    rollout = run(*plain, Table(REWARDS), num_samples=1).rollout
    four, two, end = sampler.tokenizer.convert_tokens_to_ids(["4", "2", "<eos>"])
    rows = np.array([[four, 60, two], [four, two, end], [60, len(sampler.tokenizer), end]])
    rollout = rollout.replace(tokens=rows, mask=np.ones((3, 3)))
    assert sampler.texts(rollout) == ["4\ufffd2", "42", "\ufffd\ufffd"]


def test_rows_that_do_not_fill_the_mesh_are_padded_and_cut(traced):  # noqa: F811
    sampler, params = make_sampler(mesh=(2, 2, 2), temperature=1.0)
    prompts = sampler.prompts(ITEMS)
    out = sampler(params, *prompts, jax.random.key(0), num_samples=2)
    assert traced == [(4, PROMPT), (8,)]  # three prompts on 2 x 2 row shards
    one, params = make_sampler(temperature=1.0)
    same = one(params, *prompts, jax.random.key(0), num_samples=2)
    jax.tree.map(np.testing.assert_array_equal, out, same)
    assert out.tokens.shape == (6, RESPONSE)


def test_greedy_overrides_the_temperature(plain):
    sampler, _ = plain
    flat = tiny.table_params(np.eye(len(sampler.tokenizer)) * 1e-3)  # all but uniform
    prompts = sampler.prompts([Item("1", ""), Item("9", "")])
    out = sampler(flat, *prompts, jax.random.key(0), greedy=True)
    assert sampler.texts(out) == ["111", "999"]
    sampled = sampler(flat, *prompts, jax.random.key(0), num_samples=20)
    assert len(set(sampler.texts(sampled))) > 20


def test_programs_are_compiled_once_per_shape(traced):  # noqa: F811
    sampler, params = make_sampler()
    for seed in range(3):
        sampler(params, *sampler.prompts(ITEMS), jax.random.key(seed))
    assert len(traced) == 2  # prefill and decode


@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_demonstrations_are_answers_with_their_end(pad_is_eos):
    tokenizer = character_tokenizer(ALPHABET, pad_is_eos=pad_is_eos)
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    rollout = demonstrations(tokenizer, ITEMS[:2], prompt_length=5, response_length=4)
    assert rollout.tokens.tolist() == [[*tokenizer.encode("42"), eos, pad], [eos, pad, pad, pad]]
    assert rollout.mask.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    assert rollout.prompt_tokens.tolist() == [
        [pad, *tokenizer.encode("1+1=")],
        [pad, pad, pad, *tokenizer.encode("33")],
    ]
    assert rollout.prompt_mask.tolist() == [[0, 1, 1, 1, 1], [0, 0, 0, 1, 1]]
    assert not rollout.truncated.any() and rollout.groups.tolist() == [0, 1]
    assert rollout.rewards.dtype == rollout.mask.dtype == np.float32
    assert rollout.tokens.dtype == np.int32


def test_demonstrations_that_do_not_fit_are_refused():
    tokenizer = character_tokenizer(ALPHABET)
    with pytest.raises(ValueError, match="has 4 tokens.*3"):
        demonstrations(tokenizer, ITEMS[:2], prompt_length=3, response_length=4)
    with pytest.raises(ValueError, match="has 3 tokens.*2"):
        demonstrations(tokenizer, ITEMS[:2], prompt_length=5, response_length=2)
