"""Attention in tiles against whole matrices of scores: values, gradients, memory, sharding."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import NamedSharding, PartitionSpec

import dfpo_jax.models.attention as attention_module
from dfpo_jax.models import Transformer
from dfpo_jax.models.tiled_attention import tiled_attention
from dfpo_jax.sharding import create_mesh, mesh_context

B, H, TILE = 2, 8, 32


def inputs(length, heads=4, kv_heads=2, batch=B, seed=0):
    """Queries, keys, values, and a direction of the result."""
    rng = np.random.default_rng(seed)
    sizes = (heads, kv_heads, kv_heads, heads)
    return tuple(rng.normal(size=(batch, length, n, H)).astype(np.float32) for n in sizes)


def segments(length, seed=1):
    rng = np.random.default_rng(seed)
    return np.sort(rng.integers(0, 4, (B, length)), axis=1)


def whole(q, k, v, ids):
    """The softmax of all scores at once."""
    length, group = q.shape[1], q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(x, group, axis=2) for x in (k, v))
    seen = np.tri(length, dtype=bool)[None]
    if ids is not None:
        seen = seen & (ids[:, :, None] == ids[:, None, :])
    scores = jnp.einsum("binh,bjnh->bnij", q, k) * H**-0.5
    weights = jax.nn.softmax(jnp.where(seen[:, None], scores, -jnp.inf), axis=-1)
    return jnp.einsum("bnij,bjnh->binh", weights, v)


def with_gradient(function, q, k, v, direction):
    out, pull = jax.vjp(function, q, k, v)
    return out, *pull(jnp.asarray(direction, out.dtype))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("length", "heads", "kv_heads"), [(5, 4, 2), (32, 3, 3), (33, 4, 2), (96, 6, 1), (101, 4, 2)]
)
def test_values_and_gradients_are_those_of_whole_matrices(length, heads, kv_heads, packed):
    arrays, ids = inputs(length, heads, kv_heads), segments(length) if packed else None
    found = jax.jit(
        lambda *x: with_gradient(lambda q, k, v: tiled_attention(q, k, v, ids, TILE), *x)
    )(*arrays)
    expected = with_gradient(lambda q, k, v: whole(q, k, v, ids), *arrays)
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, atol=5e-6)


def test_low_precision_inputs_keep_their_type_and_a_float32_softmax():
    arrays = [jnp.asarray(x, jnp.bfloat16) for x in inputs(100)]
    expected = with_gradient(lambda *x: whole(*x, None), *(x.astype(jnp.float32) for x in arrays))
    found = with_gradient(lambda *x: tiled_attention(*x, None, TILE), *arrays)
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == jnp.bfloat16
        error = np.abs(np.asarray(x, np.float32) - np.asarray(y)).max()
        assert 0.0 < error < 1e-2 * np.abs(y).max()


def test_memory_of_a_gradient_grows_with_the_length_alone():
    def temporary(length):
        shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs(length)]
        run = jax.jit(lambda *x: with_gradient(lambda *y: tiled_attention(*y, None, TILE), *x))
        return run.lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    assert temporary(2048) < 2.2 * temporary(1024)


def test_a_mesh_splits_rows_and_heads():
    mesh = create_mesh(2, 2, 2)
    arrays = inputs(100, batch=4)
    spec = PartitionSpec(("data", "fsdp"), None, "tensor")
    put = [jax.device_put(x, NamedSharding(mesh, spec)) for x in arrays]
    run = jax.jit(lambda *x: with_gradient(lambda *y: tiled_attention(*y, None, TILE), *x))
    with mesh_context(mesh):
        program = run.lower(*put).compile()
    text = program.as_text()
    assert not any(word in text for word in ("all-gather", "all-to-all", "all-reduce"))
    for x, y in zip(program(*put), run(*arrays), strict=True):
        assert x.sharding.shard_shape(x.shape)[::2] == (1, x.shape[2] // 2)
        np.testing.assert_allclose(x, y, atol=1e-5)


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_the_decoder_uses_tiles_for_long_sequences(remat, monkeypatch):
    model = Transformer(dataclasses.replace(tiny.DECODER, remat=remat, max_positions=80))
    tokens = np.random.default_rng(0).integers(0, tiny.VOCAB, (2, 70))
    valid = np.ones_like(tokens)
    params = tiny.randomised(nn.unbox(model.init(jax.random.key(0), tokens[:, :1], valid[:, :1])))
    calls = []

    def counted(*inputs):
        calls.append(inputs[0].shape[1])
        return tiled_attention(*inputs)

    def loss(params):
        return jnp.sum(jnp.sin(model.apply(params, tokens, valid)[0]))

    expected = jax.grad(loss)(params)
    monkeypatch.setattr(attention_module, "tiled_attention", counted)
    monkeypatch.setattr(attention_module, "_TILE", TILE)
    assert not calls
    monkeypatch.setattr(attention_module, "_LONGEST_IN_PIECES", 69)
    found = jax.grad(loss)(params)
    assert 70 in calls
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-4, rtol=2e-4)
