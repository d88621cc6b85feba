"""Responses that outlast an iteration, against responses that are sampled at once."""

import dataclasses
from collections import Counter

import jax
import numpy as np
import pytest
import tiny
from plain_logits import plain_logits

from dfpo_jax.models import Transformer, TransformerConfig
from dfpo_jax.rollout.generate import generate
from dfpo_jax.rollout.partial import Partial, first_unfinished, take
from dfpo_jax.rollout.sampler import Sampler
from dfpo_jax.rollout.sampling import SamplingConfig
from dfpo_jax.sharding import create_mesh
from dfpo_jax.tasks.base import Item
from dfpo_jax.tokenizers import character_tokenizer

LIMIT, TOKENS, PROMPTS, SPARE, STEPS = 8, 2, 3, 2, 6
MODEL = Transformer(TransformerConfig(13, 16, 1, 2, 1, 8, 32, max_positions=64))


@pytest.fixture(scope="module")
def counting():
    """A policy that counts down from the prompt's last digit, "210" and the end; "+" never ends."""
    tokenizer = character_tokenizer("0123456789+")
    ids = {text: tokenizer.convert_tokens_to_ids(text) for text in "0123456789+"}
    follows = {ids[str(n + 1)]: ids[str(n)] for n in range(9)}
    follows |= {ids["0"]: tokenizer.eos_token_id, ids["+"]: ids["+"]}
    table = np.full((len(tokenizer),) * 2, -50.0)
    for before, after in follows.items():
        table[before, after] = 0.0
    model, params = tiny.table_model(len(tokenizer)), tiny.table_params(table)
    return Sampler(model, tokenizer, 3, SamplingConfig(LIMIT), create_mesh(1, 1, 1)), params


@pytest.fixture(scope="module")
def random():
    """A random decoder at temperature 1."""
    tokenizer = character_tokenizer("0123456789")
    params = MODEL.init(jax.random.key(1), *2 * [np.zeros((1, 1), np.int32)])["params"]
    params = jax.tree.map(lambda x: 4 * x, jax.device_get(tiny.nn.unbox(params)))
    return Sampler(MODEL, tokenizer, 3, SamplingConfig(LIMIT), create_mesh(1, 1, 1)), params


def batch(step, size):
    """Prompts of one to three characters, whose last one says how long the response is."""
    rng = np.random.default_rng(step)
    lasts = rng.choice(list("0123456789+"), size=20)[:size]
    return [Item("7" * (n % 3) + last, "", index=100 * step + n) for n, last in enumerate(lasts)]


def iterations(sampler, params, prompts=batch, samples=2, steps=STEPS, tokens=TOKENS, rounds=0):
    partial = Partial(tokens, SPARE)
    unfinished = first_unfinished(partial, PROMPTS, samples, LIMIT, sampler.top)
    for step in range(steps):
        key = jax.random.fold_in(jax.random.key(3), step)
        sizes = {"tokens": tokens, "prompts": PROMPTS, "samples": samples, "most_rounds": rounds}
        taken = take(sampler, params, prompts, unfinished, key, step, **sizes)
        unfinished = taken.unfinished
        yield taken


def test_every_prompt_comes_once_with_the_responses_of_sampling_at_once(counting):
    sampler, params = counting
    rounds, seen, waits = [], [], []
    for step, taken in enumerate(iterations(sampler, params)):
        whole = sampler(
            params, *sampler.prompts(taken.items), jax.random.key(0), num_samples=2, greedy=True
        )
        for name in ("tokens", "mask", "truncated"):
            np.testing.assert_array_equal(getattr(taken.responses, name), getattr(whole, name))
        np.testing.assert_allclose(taken.responses.log_probs, whole.log_probs, atol=1e-5)
        seen += [item.index for item in taken.items]
        waits += [step - item.index // 100 for item in taken.items]
        assert len(taken.unfinished.prompts) == SPARE
        left = [100 * step + number for step, number, _ in taken.unfinished.prompts]
        begun = [100 * s + n for s in range(step + 1) for n in range(PROMPTS + SPARE * (s == 0))]
        assert sorted(seen + left) == begun
        rest = taken.unfinished.responses
        goes_on = rest.truncated & (rest.mask.sum(axis=1) < LIMIT)
        assert taken.metrics["partial/unfinished"] == goes_on.sum()
        rounds.append(taken.metrics["partial/rounds"])
    assert max(waits) > 1 and min(rounds) < LIMIT // TOKENS  # something waited, and was not awaited


def test_no_iteration_waits_for_more_rounds_than_it_may(counting):
    sampler, params = counting
    seen, counts = [], []
    for taken in iterations(sampler, params, rounds=1):
        whole = sampler(
            params, *sampler.prompts(taken.items), jax.random.key(0), num_samples=2, greedy=True
        )
        found, mask = taken.responses, taken.responses.mask
        np.testing.assert_array_equal(mask * found.tokens, mask * whole.tokens)
        cut = mask.sum(axis=1) < whole.mask.sum(axis=1)
        np.testing.assert_array_equal(found.truncated, cut | whole.truncated)
        assert taken.metrics["partial/rounds"] == 1 and taken.metrics["partial/cut"] == cut.sum()
        if cut.any():  # then nothing is left that is finished, or was begun before
            assert taken.metrics["partial/unfinished"] == SPARE * 2
            begun = [x.index // 100 for x, one in zip(taken.items, cut[::2], strict=True) if one]
            assert max(begun) <= taken.unfinished.prompts[:, 0].min()
        seen += [item.index for item in taken.items]
        counts.append(int(cut.sum()))
    left = [100 * step + number for step, number, _ in taken.unfinished.prompts]
    begun = [100 * s + n for s in range(STEPS) for n in range(PROMPTS + SPARE * (s == 0))]
    assert sorted(seen + left) == begun
    assert min(counts) == 0 < max(counts)


def test_tokens_of_earlier_iterations_are_counted(counting):
    """One token a round: prompts of one length take two iterations of three rounds in all."""

    def prompts(step, size):
        return [Item("1", "", index=step)] * size  # "0" and the end

    shares = [
        taken.metrics["partial/older_tokens"]
        for taken in iterations(*counting, prompts, steps=2, tokens=1)
    ]
    # First the two spare prompts are done, then one of the others; of it nothing is older.
    assert shares[0] == 0.0
    # Two prompts of the first iteration, with both tokens, and one of the second.
    assert shares[1] == pytest.approx(2 / 3)


def test_a_prompt_that_has_become_another_is_refused(counting):
    """As where a run is resumed with other data: another answer would judge its responses."""
    taken = next(iterations(*counting))
    sizes = {"tokens": TOKENS, "prompts": PROMPTS, "samples": 2}

    def others(step, size):
        return [Item("1", "", index=n) for n in range(size)]

    with pytest.raises(
        ValueError, match="has unfinished responses and is now another, '1'; resume"
    ):
        take(*counting, others, taken.unfinished, jax.random.key(0), 1, **sizes)


def test_every_prompt_that_is_cut_is_counted_once(counting):
    sampler, params = counting
    cutting = dataclasses.replace(sampler, truncate_prompts=True)

    def prompts(step, size):
        return [Item("77770", "")] * size

    tally, unfinished = Counter(), first_unfinished(Partial(TOKENS, SPARE), PROMPTS, 2, LIMIT, 0)
    for step, counted in enumerate((PROMPTS + SPARE, PROMPTS)):
        before = tally["rollout/shortened_prompts"]
        sizes = {"tokens": TOKENS, "prompts": PROMPTS, "samples": 2, "tally": tally}
        taken = take(cutting, params, prompts, unfinished, jax.random.key(step), step, **sizes)
        unfinished = taken.unfinished
        assert tally["rollout/shortened_prompts"] == before + counted


def test_log_probabilities_are_those_of_the_tokens_whatever_the_rounds(random):
    sampler, params = random
    for taken in iterations(sampler, params, steps=3):
        tokens, mask = (np.repeat(x, 2, axis=0) for x in sampler.prompts(taken.items))
        found = taken.responses
        sequence = np.concatenate([tokens, found.tokens], axis=1)
        valid = np.concatenate([mask, found.mask], axis=1)
        hidden, _ = MODEL.apply({"params": params}, sequence, valid)
        log_probs = np.asarray(jax.nn.log_softmax(plain_logits(params, hidden)))[
            :, tokens.shape[1] - 1 : -1
        ]
        expected = np.take_along_axis(log_probs, found.tokens[..., None], axis=2)[..., 0]
        np.testing.assert_allclose(found.log_probs, expected * found.mask, atol=2e-5)
        # Rows of one prompt differ, also those that went on in one call.
        assert len({row.tobytes() for row in found.tokens}) > len(taken.items)


def test_a_mesh_gives_the_same(random):
    sampler, params = random
    split = Sampler(MODEL, sampler.tokenizer, 3, sampler.config, create_mesh(2, 2, 1))
    for ours, theirs in zip(
        iterations(sampler, params, steps=3), iterations(split, params, steps=3), strict=True
    ):
        assert [x.index for x in ours.items] == [x.index for x in theirs.items]
        np.testing.assert_array_equal(ours.responses.tokens, theirs.responses.tokens)


def test_a_stop_text_may_begin_in_one_round_and_end_in_the_next(counting):
    sampler, params = counting
    stopping = Sampler(sampler.model, sampler.tokenizer, 3, sampler.config, sampler.mesh, stop="54")

    def prompts(step, size):
        return [Item("7", "")] * size  # "65", "43", ...

    taken = next(iterations(stopping, params, prompts, steps=1))
    assert stopping.texts(taken.responses) == ["6"] * PROMPTS * 2
    assert not taken.responses.truncated.any()


def test_unwanted_prompts_get_no_response_and_change_no_other(random):
    sampler, params = random
    tokens, mask = sampler.prompts(batch(0, 4))
    options = {"config": sampler.config, "eos_ids": sampler.ends, "pad_id": 0, "num_samples": 2}
    every = generate(MODEL, params, tokens, mask, jax.random.key(0), **options)
    wanted = np.array([True, False, True, False])
    for slots in (0, 2):
        options["config"] = SamplingConfig(LIMIT, slots=slots)
        some = generate(MODEL, params, tokens, mask, jax.random.key(0), wanted=wanted, **options)
        rows = np.repeat(wanted, 2)
        np.testing.assert_array_equal(some.tokens[rows], every.tokens[rows])
        np.testing.assert_array_equal(some.mask[~rows], 0.0)
        assert some.truncated[~rows].all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((-1, 1), "tokens is -1; it must lie in"),
        ((2, 0), "tokens is 2 and spare 0; both must be 0, or both at least 1"),
        ((0, 2), "tokens is 0 and spare 2; both must be 0, or both at least 1"),
        ((2, 2, -1), "rounds is -1; it must lie in"),
        ((0, 0, 1), "rounds is 1 and tokens 0; without tokens it must be 0"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Partial(*settings)
