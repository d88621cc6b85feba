"""Where the sampler's arrays lie on a mesh, and that this changes no sample."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from dfpo_jax.models import PRESETS, Transformer
from dfpo_jax.models.transformer import init_cache
from dfpo_jax.rollout.sampling import SamplingConfig, generate, next_logits, sampling_params
from dfpo_jax.sharding import create_mesh, mesh_context, put_batch, shardings
from dfpo_jax.training.learner import init_policy

CONFIG = dataclasses.replace(PRESETS["tiny"], dtype="bfloat16", tie_embeddings=False, qk_norm=True)
MODEL = Transformer(CONFIG)
TOKENS = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (8, 5)).astype(np.int32)
MASK = np.ones((8, 5), np.float32)
MASK[0, :3] = 0


@pytest.fixture(scope="module")
def params():
    return nn.unbox(jax.jit(lambda key: init_policy(MODEL, key))(jax.random.key(0)))


def layout(mesh):
    return nn.unbox(
        shardings(jax.eval_shape(lambda key: init_policy(MODEL, key), jax.random.key(0)), mesh)
    )


def test_parameters_come_together_over_fsdp_in_the_compute_type(params):
    mesh = create_mesh(2, 2, 2)
    placed = jax.device_put(params, layout(mesh))
    with mesh_context(mesh):
        held = jax.jit(lambda p: sampling_params(MODEL, p))(placed)
    kernel, scale = held["layers"]["mlp"]["up"]["kernel"], held["final_norm"]["scale"]
    assert kernel.dtype == jnp.bfloat16 and scale.dtype == jnp.float32
    assert kernel.sharding.spec == P(None, None, "tensor")
    assert held["embedding"].sharding.spec[0] == "tensor" and held["head"].dtype == jnp.bfloat16
    assert {s.data.shape for s in kernel.addressable_shards} == {(2, 32, 32)}
    np.testing.assert_array_equal(
        kernel, params["layers"]["mlp"]["up"]["kernel"].astype("bfloat16")
    )


def test_logits_of_held_parameters_are_the_models_own(params):
    def logits(params):
        return next_logits(MODEL, params, TOKENS, MASK, init_cache(CONFIG, 8, 7))[0]

    held = jax.jit(lambda p: logits(sampling_params(MODEL, p)))(params)
    np.testing.assert_array_equal(held, jax.jit(logits)(params))


def test_the_cache_is_split_over_rows_and_heads(params):
    mesh = create_mesh(2, 2, 2)

    def prefill(params, tokens, mask):
        return next_logits(MODEL, params, tokens, mask, init_cache(CONFIG, 8, 7))

    placed = jax.device_put(params, layout(mesh))
    with mesh_context(mesh):
        logits, cache = jax.jit(prefill)(placed, *put_batch((TOKENS, MASK), mesh))
    for x in (cache.keys, cache.values):
        shapes = {shard.data.shape for shard in x.addressable_shards}
        assert shapes == {(2, 2, 7, 1, 8)}  # a quarter of the rows, half of the heads
    assert {shard.data.shape for shard in cache.valid.addressable_shards} == {(2, 7)}
    assert {shard.data.shape for shard in logits.addressable_shards} == {(2, 32)}


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 8, 1)])
def test_samples_on_a_mesh_are_those_of_one_device(params, sizes):
    model = Transformer(dataclasses.replace(CONFIG, dtype="float32"))

    def sample(params, tokens, mask):
        config = SamplingConfig(max_new_tokens=4)
        key = jax.random.key(1)
        options = {"config": config, "eos_ids": (3,), "pad_id": 0, "num_samples": 2}
        return generate(model, params, tokens, mask, key, **options)

    expected = jax.jit(sample)(params, TOKENS, MASK)
    mesh = create_mesh(*sizes)
    placed = jax.device_put(params, layout(mesh))
    with mesh_context(mesh):
        found = jax.jit(sample)(placed, *put_batch((TOKENS, MASK), mesh))
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-5)
