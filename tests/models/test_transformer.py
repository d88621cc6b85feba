import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfpo_jax.models.config import PRESETS
from dfpo_jax.models.transformer import Transformer

TINY = PRESETS["tiny"]
FULL = dataclasses.replace(TINY, qkv_bias=True, qk_norm=True, tie_embeddings=False)


@functools.cache
def random_params(config, seed=0):
    """Unboxed parameters, all of them random: biases and scales would hide errors at 0 and 1."""
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    shapes = nn.unbox(jax.eval_shape(Transformer(config).init, jax.random.key(0), tokens, tokens))
    rng = np.random.default_rng(seed)

    def draw(path, x):
        offset = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(offset + 0.1 * rng.normal(size=x.shape), x.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def jit_apply(config):
    """Compiled `apply` of a decoder."""
    return jax.jit(Transformer(config).apply)


def random_tokens(shape, seed=0, vocab=TINY.vocab_size):
    return np.random.default_rng(seed).integers(0, vocab, size=shape).astype(np.int32)


@pytest.fixture(scope="module")
def model():
    """(apply, params) of a tiny decoder with every option on."""
    return jit_apply(FULL), random_params(FULL)


def test_too_many_slots(model):
    _, params = model
    long = np.zeros((1, FULL.max_positions + 1), np.int32)
    with pytest.raises(ValueError, match="tokens has 129 slots; at most 128"):
        Transformer(FULL).apply(params, long, long + 1)


# Padding and causality


@pytest.mark.parametrize("kind", [bool, np.float32, np.int32])
def test_padding_on_either_side_changes_nothing(model, kind):
    apply, params = model
    tokens = random_tokens((2, 5))
    expected, _ = apply(params, tokens, np.ones((2, 5), bool))
    padded = random_tokens((2, 9), seed=5)
    valid = np.zeros((2, 9), kind)
    padded[0, 4:], valid[0, 4:] = tokens[0], 1  # left
    padded[1, 1:6], valid[1, 1:6] = tokens[1], 1  # both
    hidden, _ = apply(params, padded, valid)
    found = np.stack([hidden[0, 4:], hidden[1, 1:6]])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_holes_are_skipped(model):
    apply, params = model
    tokens = random_tokens((1, 4))
    expected, _ = apply(params, tokens, np.ones((1, 4)))
    padded, valid = random_tokens((1, 7), seed=5), np.array([[0, 1, 0, 1, 1, 0, 1]])
    padded[valid == 1] = tokens[0]
    hidden, _ = apply(params, padded, valid)
    np.testing.assert_allclose(np.asarray(hidden)[valid == 1], expected[0], rtol=1e-4, atol=1e-5)


def test_a_token_does_not_see_later_ones(model):
    apply, params = model
    tokens = random_tokens((1, 6))
    other = tokens.copy()
    other[0, 4] = (other[0, 4] + 1) % TINY.vocab_size
    first, second = (np.asarray(apply(params, x, np.ones((1, 6)))[0]) for x in (tokens, other))
    np.testing.assert_array_equal(first[:, :4], second[:, :4])
    assert np.all(np.abs(first[:, 4:] - second[:, 4:]).max(axis=-1) > 1e-3)


def test_an_entirely_empty_row_is_finite_with_finite_gradients(model):
    _, params = model
    tokens, valid = random_tokens((2, 5)), np.ones((2, 5))
    valid[0] = 0

    def loss(params):
        return jnp.sum(Transformer(FULL).apply(params, tokens, valid)[0] ** 2)

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    assert np.isfinite(value) and all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))


# Parameters, types and remat


def test_initial_parameters():
    config = dataclasses.replace(FULL, num_layers=8, d_model=64, d_ff=128)
    tokens = jnp.zeros((1, 2), jnp.int32)
    params = nn.unbox(jax.jit(Transformer(config).init)(jax.random.key(0), tokens, tokens))[
        "params"
    ]
    assert set(params) == {"embedding", "layers", "final_norm", "head"}
    layers = params["layers"]
    assert all(x.shape[0] == 8 for x in jax.tree.leaves(layers))
    std = {
        "embedding": (params["embedding"], 0.02),
        "head": (params["head"], 0.02),
        "query": (layers["attention"]["query"]["kernel"], 0.02),
        "gate": (layers["mlp"]["gate"]["kernel"], 0.02),
        "output": (layers["attention"]["output"]["kernel"], 0.02 / 4),
        "down": (layers["mlp"]["down"]["kernel"], 0.02 / 4),
    }
    for name, (x, expected) in std.items():
        assert np.std(x) == pytest.approx(expected, rel=0.05), name
    kernel = np.asarray(layers["mlp"]["up"]["kernel"])
    assert not np.allclose(kernel[0], kernel[1])  # each layer has its own draw
    assert np.all(np.asarray(layers["attention"]["key"]["bias"]) == 0)
    assert np.all(np.asarray(layers["attention"]["key_norm"]["scale"]) == 1)
    tied = jax.eval_shape(Transformer(TINY).init, jax.random.key(0), tokens, tokens)["params"]
    assert set(tied) == {"embedding", "layers", "final_norm"}
    assert set(tied["layers"]["attention"]) == {"query", "key", "value", "output"}
    assert set(tied["layers"]["attention"]["query"]) == {"kernel"}


def test_remat_changes_neither_values_nor_gradients(model):
    _, params = model
    tokens, valid = random_tokens((2, 5)), np.ones((2, 5))
    results = []
    for remat in ("none", "full"):
        decoder = Transformer(dataclasses.replace(FULL, remat=remat))

        def loss(params, decoder=decoder):
            return jnp.sum(jnp.sin(decoder.apply(params, tokens, valid)[0]))

        text = str(jax.make_jaxpr(jax.grad(loss))(params))
        assert ("remat" in text or "checkpoint" in text) == (remat == "full")
        results.append(jax.jit(jax.value_and_grad(loss))(params))
    for x, y in zip(jax.tree.leaves(results[0]), jax.tree.leaves(results[1]), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_types():
    config = dataclasses.replace(FULL, dtype="bfloat16", param_dtype="bfloat16")
    params, apply = random_params(config), jit_apply(config)
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(params))
    tokens, valid = random_tokens((2, 5)), np.ones((2, 5))
    hidden, _ = apply(params, tokens, valid)
    assert hidden.dtype == jnp.bfloat16
    exact_params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    exact, _ = jit_apply(FULL)(exact_params, tokens, valid)
    np.testing.assert_allclose(np.asarray(hidden, np.float32), exact, atol=0.25)
    half = Transformer(dataclasses.replace(FULL, dtype="bfloat16"))
    assert jax.eval_shape(half.apply, exact_params, tokens, valid)[0].dtype == jnp.bfloat16


def test_constraints_are_silent_without_a_mesh(model):
    apply, params = model
    rules = (("batch", "data"), ("embed", "fsdp"))
    plain, _ = apply(params, random_tokens((2, 3)), np.ones((2, 3)))
    with nn.logical_axis_rules(rules):
        ruled, _ = jit_apply(FULL)(params, random_tokens((2, 3)), np.ones((2, 3)))
    np.testing.assert_allclose(plain, ruled, rtol=1e-4, atol=1e-5)


def test_configurations_are_static_arguments():
    traced = []

    def count(config, x):
        traced.append(config)
        return x * config.d_model

    jitted = jax.jit(count, static_argnums=0)
    assert float(jitted(TINY, 1.0)) == float(jitted(dataclasses.replace(TINY), 1.0)) == 32
    assert len(traced) == 1
