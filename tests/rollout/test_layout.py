"""Where the sampler's arrays lie on a mesh, and that this changes no sample."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from dfpo_jax.models import PRESETS, Transformer, decode
from dfpo_jax.rollout.generate import generate
from dfpo_jax.rollout.sampling import SamplingConfig
from dfpo_jax.sharding import create_mesh, mesh_context, put_batch, shardings
from dfpo_jax.training.update import init_policy

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
        held = jax.jit(lambda p: decode.gather_params(MODEL, p))(placed)
    layer = held["layers"][1]
    kernel, scale = layer["mlp"]["up"]["kernel"], held["final_norm"]["scale"]
    assert kernel.dtype == jnp.bfloat16 and scale.dtype == jnp.float32
    assert kernel.sharding.spec == P("tensor") or kernel.sharding.spec == P("tensor", None)
    output = layer["attention"]["output"]["kernel"]  # [embed, heads, head width]
    assert tuple(output.sharding.spec)[:2] == (None, "tensor")
    for name in ("embedding", "head"):
        assert held[name].sharding.spec[0] == "tensor" and held[name].dtype == jnp.bfloat16
    assert {s.data.shape for s in kernel.addressable_shards} == {(32, 32)}


def test_the_cache_is_split_over_rows_and_heads(params):
    mesh = create_mesh(2, 2, 2)

    def prefill(params, tokens, mask):
        _, cache = decode.prefill(MODEL, params, tokens, mask)
        logits, _, after = decode.step(
            CONFIG, decode.gather_params(MODEL, params), tokens[:, 0], mask[:, 0] > 0, cache
        )
        return logits, after, cache

    placed = jax.device_put(params, layout(mesh))
    with mesh_context(mesh):
        logits, *caches = jax.jit(prefill)(placed, *put_batch((TOKENS, MASK), mesh))
    for cache in caches:
        # A quarter of the rows, half of the heads.
        for arrays, shape in ((cache.keys, (2, 1, 8, 5)), (cache.values, (2, 1, 5, 8))):
            for x in arrays:
                assert {shard.data.shape for shard in x.addressable_shards} == {shape}
        assert {shard.data.shape for shard in cache.valid.addressable_shards} == {(2, 5)}
        rows = {shard.data.shape for shard in logits.addressable_shards}
        assert rows == {(1, 64)}  # every device draws the tokens of a row of its own


@pytest.mark.slow
@pytest.mark.parametrize("slots", [0, 4, 8])
@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 8, 1)])
def test_samples_on_a_mesh_are_those_of_one_device(params, sizes, slots):
    model = Transformer(dataclasses.replace(CONFIG, dtype="float32"))

    def sample(params, tokens, mask, slots=slots):
        config = SamplingConfig(max_new_tokens=4, slots=slots, prefill_rows=slots)
        key = jax.random.key(1)
        options = {"config": config, "eos_ids": (3, 9, 27), "pad_id": 0, "num_samples": 2}
        return generate(model, params, tokens, mask, key, **options)

    expected = jax.jit(lambda *inputs: sample(*inputs, slots=0))(params, TOKENS, MASK)
    mesh = create_mesh(*sizes)
    placed = jax.device_put(params, layout(mesh))
    with mesh_context(mesh):
        found = jax.jit(sample)(placed, *put_batch((TOKENS, MASK), mesh))
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-5)


def test_prompts_that_the_mesh_does_not_divide_are_refused(params):
    options = {"config": SamplingConfig(max_new_tokens=2), "eos_ids": (3,), "pad_id": 0}
    with mesh_context(create_mesh(4, 2, 1)), pytest.raises(ValueError, match="6 rows; .* 8 devi"):
        generate(MODEL, params, TOKENS[:6], MASK[:6], jax.random.key(0), **options)
