"""One token at a time: equal to one pass, whatever the columns, and what the cache holds."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from plain_logits import plain_logits

from dfpo_jax.models import PRESETS, LoraConfig, Transformer, decode

TINY = PRESETS["tiny"]
FULL = dataclasses.replace(TINY, qkv_bias=True, qk_norm=True, tie_embeddings=False)
SINGLE = dataclasses.replace(TINY, num_kv_heads=TINY.num_heads)  # one query for each key


def random_params(config):
    tokens = jnp.zeros((1, 2), jnp.int32)
    model = Transformer(config)
    params = model.init(jax.random.key(0), tokens, tokens)["params"]
    return tiny.randomised(nn.unbox(params), scale=0.1)


def random_tokens(shape, seed=0):
    return np.random.default_rng(seed).integers(0, TINY.vocab_size, shape).astype(np.int32)


def one_pass(config, params, tokens, valid):
    """Logits [B, T, V] of whole sequences."""
    model = Transformer(config)
    hidden, _ = model.apply({"params": params}, tokens, valid)
    return np.asarray(plain_logits(params, hidden))


def decoder(config, params, **options):
    """`step` with its parameters, compiled."""
    held = jax.jit(functools.partial(decode.gather_params, Transformer(config)))(params)
    return jax.jit(functools.partial(decode.step, config, held, **options))


@pytest.mark.slow
@pytest.mark.parametrize("config", [TINY, FULL, SINGLE], ids=["plain", "full", "single"])
@pytest.mark.parametrize(("prompt", "wide"), [(0, False), (1, True), (5, False), (5, True)])
def test_prefill_and_steps_equal_one_pass(config, prompt, wide):
    params = random_params(config)
    tokens, valid = random_tokens((3, 8)), np.ones((3, 8), bool)
    valid[0, :3], valid[1, :1] = False, False  # left padding
    valid[2, 6:] = False  # a row that ended early
    whole, step = one_pass(config, params, tokens, valid), decoder(config, params, wide=wide)
    cache = decode.init_cache(config, 3, 11)
    if prompt:
        model = Transformer(config)
        _, cache = decode.prefill(model, params, tokens[:, :prompt], valid[:, :prompt])
        assert int(cache.index) == prompt
        cache = tiny.widened(config, cache, 11 - prompt)
    for i in range(prompt, 8):
        logits, _, cache = step(tokens[:, i], valid[:, i], cache)
        assert logits.dtype == jnp.float32
        keep = valid[:, i]
        np.testing.assert_allclose(logits[keep], whole[keep, i], rtol=1e-4, atol=1e-5)
    assert int(cache.index) == 8
    first = np.sort(valid[:, :prompt])[:, ::-1]  # padding lies behind a prompt's tokens
    np.testing.assert_array_equal(cache.valid[:, :8], np.hstack([first, valid[:, prompt:]]))
    assert not np.any(cache.valid[:, 8:])
    keys = [np.moveaxis(x, decode.columns_of_keys(config), 2) for x in cache.keys]
    assert not any(np.any(x[:, :, 8:]) for x in (*keys, *cache.values))


def test_the_order_of_columns_does_not_matter():
    """A ring: the last tokens lie in columns before the first ones."""
    params, tokens = random_params(FULL), random_tokens((2, 6))
    step, cache = decoder(FULL, params), decode.init_cache(FULL, 2, 7)
    for i in range(6):
        cache = cache.replace(index=jnp.int32((i + 4) % 7))
        logits, _, cache = step(tokens[:, i], np.ones(2, bool), cache)
    expected = one_pass(FULL, params, tokens, np.ones((2, 6)))[:, -1]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_columns_that_are_not_valid_are_not_read():
    params, tokens = random_params(FULL), random_tokens((2, 3))
    step, cache = decoder(FULL, params), decode.init_cache(FULL, 2, 7)
    junk = cache.replace(
        keys=tuple(x + 7.0 for x in cache.keys), values=tuple(x - 9.0 for x in cache.values)
    )
    for i in range(3):
        logits, _, cache = step(tokens[:, i], np.ones(2, bool), cache)
        same, _, junk = step(tokens[:, i], np.ones(2, bool), junk)
        np.testing.assert_array_equal(logits, same)


def test_cache_shapes_types_and_limits():
    cache = decode.init_cache(TINY, 3, 7)
    assert [x.shape for x in cache.keys] == [(3, 2, 8, 7)] * 2
    assert [x.shape for x in cache.values] == [(3, 2, 7, 8)] * 2
    single = decode.init_cache(SINGLE, 3, 7)
    assert {x.shape for x in single.keys + single.values} == {(3, SINGLE.num_heads, 7, 8)}
    assert cache.keys[0].dtype == jnp.float32 and cache.valid.dtype == bool
    assert cache.valid.shape == (3, 7) and cache.index.dtype == jnp.int32
    for length in (0, TINY.max_positions + 1):
        with pytest.raises(ValueError, match=f"length is {length}; .*between 1 and 128"):
            decode.init_cache(TINY, 1, length)


def test_a_cache_of_lower_precision_stays_so_and_stays_close():
    params, tokens = random_params(FULL), random_tokens((2, 6))
    step, cache = decoder(FULL, params), decode.init_cache(FULL, 2, 6, "bfloat16")
    for i in range(6):
        logits, _, cache = step(tokens[:, i], np.ones(2, bool), cache)
    assert {x.dtype for x in cache.keys + cache.values} == {jnp.dtype("bfloat16")}
    expected = one_pass(FULL, params, tokens, np.ones((2, 6)))[:, -1]
    assert 0 < np.abs(np.asarray(logits) - expected).max() < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_low_rank_updates_are_decoded_as_they_are_trained(tied):
    config = dataclasses.replace(FULL, lora=LoraConfig(rank=3, alpha=6.0), tie_embeddings=tied)
    params, tokens = random_params(config), random_tokens((2, 4))
    step, cache = decoder(config, params), decode.init_cache(config, 2, 4)
    for i in range(4):
        logits, _, cache = step(tokens[:, i], np.ones(2, bool), cache)
    expected = one_pass(config, params, tokens, np.ones((2, 4)))[:, -1]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    # Beside the kernels, also in bfloat16: a sum of both would lose a small update there.
    held = decode.gather_params(Transformer(dataclasses.replace(config, dtype="bfloat16")), params)
    kernels, output = params["layers"]["attention"], held["layers"][1]["attention"]["output"]
    for name, axes in (("kernel", (2, 0, 1)), ("lora_a", (2, 0, 1)), ("lora_b", (1, 0))):
        expected = kernels["output"][name][1].transpose(axes).astype("bfloat16")
        np.testing.assert_array_equal(output[name], expected)


def test_held_parameters_are_the_models_in_the_compute_type():
    config = dataclasses.replace(FULL, dtype="bfloat16")
    params = random_params(config)
    held = decode.gather_params(Transformer(config), params)
    assert len(held["layers"]) == TINY.num_layers
    attention, layers = held["layers"][1]["attention"], params["layers"]
    for name, axes in (("query", (1, 2, 0)), ("output", (2, 0, 1))):
        kernel = layers["attention"][name]["kernel"][1].transpose(axes).astype("bfloat16")
        np.testing.assert_array_equal(attention[name]["kernel"], kernel)
    np.testing.assert_array_equal(held["head"], params["head"].T.astype("bfloat16"))
    assert held["layers"][0]["mlp_norm"]["scale"].dtype == jnp.float32
    tied = decode.gather_params(Transformer(TINY), random_params(TINY))
    assert tied["head"] is tied["embedding"]


def as_cached(keys, queries):
    """Keys [B, K, S, H] as a cache has them for so many queries a key."""
    return np.swapaxes(keys, 2, 3) if queries > 1 else keys


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("columns", [300, 384])
def test_attention_over_filled_chunks_equals_that_over_all_columns(columns, queries):
    """Rows see columns here and there; one sees none, and gets 0."""
    rng = np.random.default_rng(columns)
    q = rng.normal(size=(4, 2, queries, 8)).astype(np.float32)
    keys, values = (rng.normal(size=(4, 2, columns, 8)).astype(np.float32) for _ in range(2))
    seen = np.zeros((4, columns), bool)
    seen[0, 5:20] = seen[1, 130:131] = seen[2, [0, columns - 1]] = True
    filled = decode._filled(jnp.asarray(seen))
    assert int(filled[1]) == 3
    found = jax.jit(decode._attend)(q, as_cached(keys, queries), values, seen, filled)
    scores = np.einsum("bkgh,bksh->bkgs", q, keys) / np.sqrt(8)
    weights = np.where(seen[:, None, None], np.exp(scores), 0.0)
    weights = weights / np.maximum(weights.sum(axis=-1, keepdims=True), 1e-30)
    expected = np.einsum("bkgs,bksh->bkgh", weights, values).reshape(4, -1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert not np.any(found[3])
    # What no row sees is not read: it may hold anything.
    lost = keys.copy()
    lost[:, :, 256:columns] = np.where(seen.any(axis=0)[256:, None], lost[:, :, 256:], np.nan)
    only = seen & (np.arange(columns) < 256)[None]
    inputs = (q, as_cached(lost, queries), values, only, decode._filled(jnp.asarray(only)))
    again = jax.jit(decode._attend)(*inputs)
    assert int(decode._filled(jnp.asarray(only))[1]) == 2 and np.all(np.isfinite(again))


@pytest.mark.parametrize(("platform", "loops"), [("cuda", 0), ("cpu", 1), ("tpu", 1)])
def test_attention_has_no_loop_on_gpus_which_wait_for_the_host_in_every_turn(platform, loops):
    q, seen = jnp.zeros((4, 2, 3, 8)), jnp.ones((4, 384), bool)
    values = jnp.zeros((4, 2, 384, 8))
    inputs = (q, as_cached(values, 3), values, seen, decode._filled(seen))
    traced = jax.jit(decode._attend).trace(*inputs)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.while") == loops
