"""Sampling: distributions, ends of rows, the shared prefill, and agreement with the trainer."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from plain_logits import plain_logits
from tiny import steps, traced  # noqa: F401

from dfpo_jax import ops
from dfpo_jax.algorithms import trunk
from dfpo_jax.models import LoraConfig
from dfpo_jax.models.transformer import Transformer
from dfpo_jax.rollout.generate import generate
from dfpo_jax.rollout.sampling import SamplingConfig, draw

EOS = 2


def reference_log_probs(logits, temperature, top_k, top_p):
    """One row of logits in float64; removed tokens get -inf."""
    if temperature == 0:
        best = max(range(len(logits)), key=lambda v: (logits[v], -v))
        return np.array([0.0 if v == best else -math.inf for v in range(len(logits))])
    scaled = [float(x) / temperature for x in logits]
    kept = set(range(len(scaled)))
    if top_k:
        threshold = sorted(scaled, reverse=True)[min(top_k, len(scaled)) - 1]
        kept = {v for v in kept if scaled[v] >= threshold}
    if top_p < 1:
        total = sum(math.exp(scaled[v]) for v in kept)
        mass = 0.0
        for v in sorted(kept, key=lambda v: -scaled[v]):
            mass, threshold = mass + math.exp(scaled[v]) / total, scaled[v]
            if mass >= top_p:
                break
        kept = {v for v in kept if scaled[v] >= threshold}
    partition = math.log(sum(math.exp(scaled[v]) for v in kept))
    return np.array([scaled[v] - partition if v in kept else -math.inf for v in range(len(scaled))])


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1, 0, 1), (0.5, 0, 1), (3, 4, 1), (1, 1, 1), (1, 99, 1), (1, 0, 0.5), (2, 0, 1e-6)]
    + [(0.7, 5, 0.8), (1, 3, 0.99), (0, 0, 1), (0, 3, 0.5)],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_draws_and_their_log_probs_follow_a_loop(temperature, top_k, top_p, dtype):
    """A log-probability tells which tokens were kept: it contains the sum over all of them."""
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(scale=2.0, size=(5, 11)), dtype)
    logits = logits.at[4, :4].set(9.0)  # ties at the top
    config = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    keys = jax.random.split(jax.random.key(0), 500)
    tokens, log_probs = draw(keys, jnp.repeat(logits, 100, axis=0), config)
    assert log_probs.dtype == jnp.float32
    law = np.stack(
        [reference_log_probs(np.asarray(x, float), temperature, top_k, top_p) for x in logits]
    )
    expected = law[np.arange(500) // 100, tokens]
    np.testing.assert_allclose(log_probs, expected, atol=1e-5)  # -inf: a token that was removed


def test_ties_at_a_threshold_are_kept():
    logits = jnp.broadcast_to(jnp.asarray([2.0, 2.0, 1.0, 2.0, 0.0]), (60, 5))
    keys = jax.random.split(jax.random.key(0), 60)
    for config in (SamplingConfig(top_k=2), SamplingConfig(top_p=0.4), SamplingConfig(top_k=1)):
        tokens, log_probs = draw(keys, logits, config)
        assert set(np.asarray(tokens).tolist()) == {0, 1, 3}
        np.testing.assert_allclose(log_probs, -math.log(3), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"slots": -1}, "slots is -1"),
        ({"prefill_rows": -2}, "prefill_rows is -2"),
        ({"wide_rows": -1}, r"wide_rows is -1; it must be 0 \(none\) or more"),
        ({"cache_dtype": "int8"}, "cache_dtype is 'int8'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**options)


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.5}])
def test_logits_that_are_not_numbers_are_seen_in_the_log_probs(options):
    logits = jnp.full((2, 24), jnp.nan)
    tokens, log_probs = draw(jax.random.split(jax.random.key(0)), logits, SamplingConfig(**options))
    assert np.all(np.isnan(log_probs)) and np.all((tokens >= 0) & (tokens < 24))


# --- a table of next-token logits instead of a decoder ------------------------------------------


@functools.cache
def program(model, pad_id, eos_ids, num_samples, **options):
    config = SamplingConfig(**options)
    return jax.jit(
        functools.partial(
            generate,
            model,
            config=config,
            eos_ids=eos_ids,
            pad_id=pad_id,
            num_samples=num_samples,
        )
    )


def run(model, params, first, *, key=0, pad_id=0, eos_ids=(EOS,), num_samples=1, **options):
    """Generate from prompts of one token each."""
    prompts = np.asarray(first, np.int32)[:, None]
    call = program(model, pad_id, eos_ids, num_samples, **options)
    return jax.device_get(call(params, prompts, np.ones_like(prompts), jax.random.key(key)))


def chain(edges, vocab=12):
    """Parameters with which each token is followed by a fixed one."""
    table = np.full((vocab, vocab), -50.0)
    table[np.arange(vocab), np.arange(vocab)] = 0.0
    for before, after in edges.items():
        table[before] = -50.0
        table[before, after] = 0.0
    return tiny.table_params(table)


TABLE = tiny.table_model(12)
COUNTDOWN = chain({5: 6, 6: 7, 7: EOS, 3: EOS, 8: 5})  # any other token repeats itself


def test_frequencies_follow_the_reported_probabilities():
    rng = np.random.default_rng(1)
    table = rng.normal(scale=1.5, size=(12, 12))
    options = {"temperature": 0.8, "top_k": 6, "top_p": 0.9}
    rows = 20_000
    out = run(TABLE, tiny.table_params(table), [4] * rows, max_new_tokens=2, eos_ids=(), **options)
    law = np.stack([reference_log_probs(x, **options) for x in table])
    assert np.all(out.mask == 1) and np.all(out.truncated)
    before = np.full(rows, 4)
    for i in range(2):
        token = out.tokens[:, i]
        np.testing.assert_allclose(out.log_probs[:, i], law[before, token], atol=1e-5)
        for state in np.unique(before):
            drawn, probs = token[before == state], np.exp(law[state])
            counts = np.bincount(drawn, minlength=12)
            error = np.abs(counts - len(drawn) * probs)
            assert np.all(error <= 5 * np.sqrt(len(drawn) * probs * (1 - probs)) + 1e-6)
        before = token


@pytest.mark.parametrize("pad_id", [0, EOS])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_end_with_their_end_of_sequence(pad_id, temperature):
    out = run(
        TABLE,
        COUNTDOWN,
        [5, 3, 9, 8, 7],
        pad_id=pad_id,
        max_new_tokens=4,
        temperature=temperature,
    )
    responses = [[6, 7, EOS], [EOS], [9, 9, 9, 9], [5, 6, 7, EOS], [EOS]]
    for row, response in enumerate(responses):
        padding = [pad_id] * (4 - len(response))
        assert out.tokens[row].tolist() == response + padding
        assert out.mask[row].tolist() == [1.0] * len(response) + [0.0] * len(padding)
    # An end of sequence in the last slot is an end; only the row without one was cut off.
    assert out.truncated.tolist() == [False, False, True, False, False]
    np.testing.assert_allclose(out.log_probs, 0.0, atol=1e-6)
    assert out.tokens.dtype == np.int32 and out.mask.dtype == np.float32
    assert out.truncated.dtype == bool


def test_any_of_several_ids_ends_a_row():
    out = run(TABLE, COUNTDOWN, [5, 3, 8], max_new_tokens=5, eos_ids=(EOS, 7))
    assert out.tokens.tolist() == [[6, 7, 0, 0, 0], [EOS, 0, 0, 0, 0], [5, 6, 7, 0, 0]]
    assert not out.truncated.any()


@pytest.mark.slow
def test_decoding_stops_when_every_row_has_ended(steps):  # noqa: F811
    for first, expected in (([3, 3], 1), ([3, 5], 3), ([3, 9], 39)):
        steps.clear()
        run(TABLE, COUNTDOWN, first, max_new_tokens=39)
        jax.effects_barrier()
        assert len(steps) == expected
    # One slot for all of them: 1 + 3 + 1 + 4 tokens, one after the other.
    steps.clear()
    run(TABLE, COUNTDOWN, [3, 5, 7, 8], max_new_tokens=39, slots=1)
    jax.effects_barrier()
    assert len(steps) == 9
    # Two of them: beside the 9 tokens of one row those of all others.
    steps.clear()
    run(TABLE, COUNTDOWN, [9, 3, 5, 7, 8], max_new_tokens=9, slots=2)
    jax.effects_barrier()
    assert len(steps) == 9


@pytest.mark.slow
def test_samples_share_one_prefill(traced):  # noqa: F811
    prompts = np.asarray([[1, 5], [1, 3], [1, 9]], np.int32)
    options = {"eos_ids": (EOS,), "pad_id": 0, "config": SamplingConfig(4, temperature=0.0)}
    inputs = TABLE, COUNTDOWN, prompts, np.ones_like(prompts), jax.random.key(0)
    out = generate(*inputs, **options, num_samples=3)
    assert traced == [(3, 2), (9,)]
    once = generate(*inputs, **options)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.repeat(b, 3, axis=0)), out, once)


def test_the_key_decides_and_samples_differ():
    uniform = tiny.table_params(np.zeros((12, 12)))
    sample = functools.partial(run, TABLE, uniform, [4, 5], num_samples=8, max_new_tokens=6)
    first, again, other = sample(key=0), sample(key=0), sample(key=1)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert np.any(first.tokens != other.tokens)
    assert len({tuple(row) for row in first.tokens.tolist()}) == 16


@pytest.mark.slow
def test_compiles_once_per_shape(traced):  # noqa: F811
    config = SamplingConfig(max_new_tokens=3)
    call = jax.jit(functools.partial(generate, TABLE, config=config, eos_ids=(EOS,), pad_id=0))
    for seed in range(3):
        prompts = np.full((2, 3), 4 + seed, np.int32)
        params = tiny.table_params(np.full((12, 12), seed))
        call(params, prompts, prompts > 0, jax.random.key(seed))
    assert traced == [(2, 3), (2,)]
    prompts = np.full((5, 3), 4, np.int32)
    call(COUNTDOWN, prompts, prompts > 0, jax.random.key(0))
    assert traced[2:] == [(5, 3), (5,)]


# --- slots --------------------------------------------------------------------------------------


def ragged(**options):
    """18 responses of 1 to 10 tokens to 6 prompts of different lengths."""
    model = Transformer(tiny.DECODER)
    rng = np.random.default_rng(0)
    prompts = rng.integers(0, tiny.VOCAB, (6, 5)).astype(np.int32)
    mask = np.arange(5)[None] >= np.array([0, 4, 2, 1, 3, 0])[:, None]
    init = jax.jit(lambda key: model.init(key, prompts, mask)["params"])
    params = tiny.randomised(init(jax.random.key(0)), scale=0.2)
    config = SamplingConfig(max_new_tokens=10, **options)
    call = functools.partial(
        generate, model, config=config, eos_ids=(0, 1, 2), pad_id=3, num_samples=3
    )
    return jax.device_get(jax.jit(call)(params, prompts, mask, jax.random.key(1)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"slots": 1}, {"slots": 5}, {"slots": 17}, {"slots": 99}, {"prefill_rows": 2}]
    + [{"slots": 4, "prefill_rows": 4}, {"slots": 3, "prefill_rows": 1, "wide_rows": 2}],
    ids=str,
)
def test_slots_and_pieces_of_the_prefill_change_no_sample(options):
    expected, found = ragged(), ragged(**options)
    assert len(set(expected.mask.sum(axis=1).tolist())) > 4
    for name in ("tokens", "mask", "truncated"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-5)


@pytest.mark.slow
def test_a_cache_of_lower_precision_changes_log_probs_a_little():
    expected, found = ragged(), ragged(cache_dtype="bfloat16")
    first = expected.tokens[:, 0] == found.tokens[:, 0]
    difference = np.abs(expected.log_probs[first, 0] - found.log_probs[first, 0])
    assert first.mean() > 0.7 and 0 < difference.max() < 0.1


@pytest.mark.parametrize("options", [{}, {"top_k": 50}, {"top_p": 0.7, "temperature": 0.6}])
def test_tokens_of_a_large_vocabulary_follow_their_law(options):
    """A vocabulary of several blocks, in one of which no token is kept."""
    rng, vocab, rows = np.random.default_rng(2), 2048, 40_000
    logits = rng.normal(scale=2.0, size=vocab).astype(np.float32)
    logits[512:1024] = -40.0
    config = SamplingConfig(**options)
    keys = jax.random.split(jax.random.key(0), rows)

    def one(keys):
        return draw(keys, jnp.broadcast_to(logits, (len(keys), vocab)), config)

    tokens, log_probs = jax.lax.map(one, keys.reshape(40, -1))
    law = reference_log_probs(logits, config.temperature, config.top_k, config.top_p)
    tokens, log_probs = np.asarray(tokens).ravel(), np.asarray(log_probs).ravel()
    np.testing.assert_allclose(log_probs, law[tokens], atol=1e-5)
    # Tokens in the order of their probability, a hundred groups of about equal mass.
    order = np.argsort(-law)
    groups = np.minimum((np.cumsum(np.exp(law[order])) * 100).astype(int), 99)
    expected = np.bincount(groups, np.exp(law[order]), minlength=100) * rows
    group_of = np.empty(vocab, int)
    group_of[order] = groups
    counts = np.bincount(group_of[tokens], minlength=100)
    assert np.all(np.abs(counts - expected) <= 5 * np.sqrt(expected) + 1e-6)


# --- the decoder --------------------------------------------------------------------------------

TEMPERATURE, PROMPT, RESPONSE = 0.7, 5, 6


class Decoder:
    """A random decoder, left-padded prompts of every length, and jitted evaluations."""

    def __init__(self, rank=0):
        config = dataclasses.replace(tiny.DECODER, lora=LoraConfig(rank))
        self.model = Transformer(config)
        rng = np.random.default_rng(0)
        lengths = np.array([5, 1, 3, 4, 2, 5])
        self.prompts = rng.integers(0, tiny.VOCAB, (len(lengths), PROMPT)).astype(np.int32)
        self.mask = (np.arange(PROMPT)[None] >= PROMPT - lengths[:, None]).astype(np.float32)
        init = jax.jit(lambda key: self.model.init(key, self.prompts, self.mask)["params"])
        # Far from uniform, so that the order of tokens matters.
        self.params = tiny.randomised(init(jax.random.key(0)), scale=0.2)

        def statistics(params, tokens, valid, response):
            hidden = trunk.hidden_states(self.model, params, tokens, valid)
            states = trunk.response_states(hidden, RESPONSE)
            logits = plain_logits(params, states)
            return logits, *trunk.token_statistics(
                self.model, params, states, response, TEMPERATURE
            )

        self.statistics = jax.jit(statistics)

    def generate(self, eos_ids, **options):
        call = jax.jit(
            functools.partial(
                generate,
                self.model,
                config=SamplingConfig(max_new_tokens=RESPONSE, **options),
                eos_ids=eos_ids,
                pad_id=0,
                num_samples=2,
            )
        )
        return jax.device_get(call(self.params, self.prompts, self.mask, jax.random.key(7)))


@pytest.fixture(scope="module")
def decoder():
    return Decoder()


@pytest.mark.parametrize(("rank", "ends"), [(0, (0, 1, 2, 3, 4)), (3, (0, 1, 2))])
def test_sampler_log_probs_are_the_trainers(decoder, rank, ends):
    decoder = Decoder(rank) if rank else decoder
    out = decoder.generate(ends, temperature=TEMPERATURE)
    lengths = out.mask.sum(axis=1)
    assert len(set(lengths.tolist())) >= 3 and out.truncated.any() and not out.truncated.all()
    rollout = tiny.ragged_rollout().replace(
        prompt_tokens=np.repeat(decoder.prompts, 2, axis=0),
        prompt_mask=np.repeat(decoder.mask, 2, axis=0),
        tokens=out.tokens,
        mask=out.mask,
    )
    sequence, valid = trunk.join_sequence(rollout)
    for junk in (0, 17):  # what lies in padding is not read
        padded = jnp.where(valid > 0, sequence, junk)
        logits, log_probs, entropy = decoder.statistics(decoder.params, padded, valid, out.tokens)
        np.testing.assert_allclose(log_probs * out.mask, out.log_probs, atol=1e-4)
        np.testing.assert_allclose(entropy, ops.entropy(logits[:, :-1] / TEMPERATURE), atol=1e-5)
    assert np.all(out.log_probs[out.mask > 0] < 0)


def test_greedy_equals_argmax_without_a_cache(decoder):
    out = decoder.generate((0, 1), temperature=0.0)
    rows = len(decoder.prompts)
    tokens, done = np.zeros((rows, RESPONSE), np.int32), np.zeros(rows, bool)
    mask = np.zeros((rows, RESPONSE), np.float32)
    for i in range(RESPONSE):
        sequence = np.concatenate([decoder.prompts, tokens], axis=1)
        valid = np.concatenate([decoder.mask, mask], axis=1)
        logits, *_ = decoder.statistics(decoder.params, sequence, valid, tokens)
        best = np.argmax(np.asarray(logits)[:, i], axis=1)
        tokens[:, i], mask[:, i] = np.where(done, 0, best), ~done
        done |= np.isin(best, (0, 1))
    assert len({tuple(row) for row in tokens.tolist()}) > 2
    for sample in (0, 1):  # both samples of a prompt
        np.testing.assert_array_equal(out.tokens[sample::2], tokens)
        np.testing.assert_array_equal(out.mask[sample::2], mask)
        np.testing.assert_array_equal(out.truncated[sample::2], ~done)
    np.testing.assert_array_equal(out.log_probs, 0.0)
