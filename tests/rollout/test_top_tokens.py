"""The most probable tokens of every step, with their log-probabilities."""

import functools

import jax
import numpy as np
import pytest
import tiny

from dfpo_jax.rollout.generate import generate
from dfpo_jax.rollout.sampling import SamplingConfig, draw, most_probable

EOS, VOCAB, TEMPERATURE = 2, 12, 0.7


def law(logits):
    """Log-probabilities at the temperature, in float64."""
    scaled = np.asarray(logits, np.float64) / TEMPERATURE
    return scaled - np.log(np.exp(scaled).sum(axis=-1, keepdims=True))


def test_they_follow_each_sampled_token_also_in_slots_that_refill():
    """A table of logits, and three slots for eight responses; 0 behind the end."""
    table = np.random.default_rng(5).normal(size=(VOCAB, VOCAB)).astype(np.float32)
    table[:, EOS] += 1
    params, prompts = tiny.table_params(table), np.arange(8, dtype=np.int32)[:, None]
    config = SamplingConfig(max_new_tokens=6, temperature=TEMPERATURE, slots=3)
    options = {"config": config, "eos_ids": (EOS,), "pad_id": 0}
    call = functools.partial(generate, tiny.table_model(VOCAB), **options)
    inputs = (params, prompts, np.ones_like(prompts), jax.random.key(0))
    plain = jax.eval_shape(call, *inputs)
    assert plain.top_tokens is None and plain.top_log_probs is None
    found = jax.device_get(jax.jit(functools.partial(call, top=3))(*inputs))
    inside = found.mask > 0
    assert len(set(inside.sum(axis=1))) > 2  # slots become free at different steps
    before = np.concatenate([prompts, found.tokens[:, :-1]], axis=1)[inside]
    sampled = law(table)[before, found.tokens[inside]]
    np.testing.assert_allclose(found.log_probs[inside], sampled, atol=1e-5)
    order = np.argsort(-table, axis=1)[:, :3]
    np.testing.assert_array_equal(found.top_tokens[inside], order[before])
    expected = np.take_along_axis(law(table), order, axis=1)[before]
    np.testing.assert_allclose(found.top_log_probs[inside], expected, atol=1e-5)
    assert not found.top_log_probs[~inside].any()


def test_greedy_decoding_takes_the_first_of_the_most_probable_tokens():
    logits = np.round(np.random.default_rng(0).normal(size=(200, 9)), 1).astype(np.float32)
    logits[0], logits[1, 3] = -np.inf, np.inf
    assert sum((x == x.max()).sum() > 1 for x in logits) > 3
    tokens, _ = draw(
        jax.random.split(jax.random.key(0), 200), logits, SamplingConfig(temperature=0)
    )
    np.testing.assert_array_equal(tokens, np.argmax(logits, axis=1))


@pytest.mark.parametrize("options", [{"top_k": 2}, {"top_p": 1e-6}])
def test_tokens_that_truncation_has_removed_have_no_probability(options):
    logits = np.array([[0.0, 2.0, 1.0, -1.0], [3.0, 0.0, 1.0, 2.0]], np.float32)
    config = SamplingConfig(temperature=TEMPERATURE, **options)
    tokens, found = most_probable(logits, config, 3)
    np.testing.assert_array_equal(tokens, [[1, 2, 0], [0, 3, 2]])
    kept = 2 if "top_k" in options else 1
    scaled = np.sort(logits)[:, ::-1][:, :3] / TEMPERATURE
    mass = np.exp(scaled[:, :kept]).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.exp(found[:, :kept]), np.exp(scaled[:, :kept]) / mass, rtol=1e-5)
    np.testing.assert_array_equal(found[:, kept:], np.float32(-1e30))
