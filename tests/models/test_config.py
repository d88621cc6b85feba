import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from published_shapes import LLAMA3_8B, QWEN2P5_7B

from dfpo_jax.models.config import PRESETS, TransformerConfig
from dfpo_jax.models.transformer import Transformer

TINY = PRESETS["tiny"]

# Parameter counts of the published checkpoints.
PUBLISHED = {
    "qwen3_0p6b": 596_049_920,
    "qwen3_1p7b": 1_720_574_976,
    "qwen3_8b": 8_190_735_360,
    "llama3_8b": 8_030_261_248,
    "qwen2p5_7b": 7_615_616_512,
}


CONFIGS = {**PRESETS, "llama3_8b": LLAMA3_8B, "qwen2p5_7b": QWEN2P5_7B}


def test_every_preset_but_the_tiny_one_has_a_published_size():
    assert set(CONFIGS) == set(PUBLISHED) | {"tiny"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_model_has_the_published_number_of_parameters(name):
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    params = jax.eval_shape(Transformer(CONFIGS[name]).init, jax.random.key(0), tokens, tokens)
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(nn.unbox(params))) == PUBLISHED[name]


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("vocab_size", 0, "at least 1"),
        ("d_model", 32.0, "integer"),
        ("num_layers", True, "integer"),
        ("num_heads", -4, "at least 1"),
        ("num_kv_heads", 3, "must divide num_heads, 4"),
        ("head_dim", 7, "even"),
        ("d_ff", "64", "integer"),
        ("max_positions", 0, "at least 1"),
        ("rope_theta", 0.0, "above 0"),
        ("rope_theta", "1e6", "number"),
        ("norm_eps", float("nan"), "above 0"),
        ("qkv_bias", 1, "True or False"),
        ("tie_embeddings", None, "True or False"),
        ("dtype", "float64", "float32, bfloat16, float16"),
        ("param_dtype", "int8", "float32, bfloat16, float16"),
        ("remat", "some", "none, full"),
        ("attention", "flash", "auto, xla, cudnn"),
        ("rope_type", "dynamic", "default, linear, llama3, yarn"),
        ("rope_factor", 2.0, "rope_type 'default' does not use it"),
        ("rope_truncate", False, "rope_type 'default' does not use it"),
        ("rope_truncate", 1, "True or False"),
        ("rope_attention_factor", 0.0, "above 0"),
    ],
)
def test_a_bad_field_is_named_with_its_value_and_what_is_allowed(field, value, allowed):
    with pytest.raises(ValueError) as error:
        dataclasses.replace(TINY, **{field: value})
    assert str(error.value).startswith(f"{field} is {value!r}; ")
    assert allowed in str(error.value)


def test_is_immutable_and_hashable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TINY.d_model = 3
    assert hash(TINY) == hash(dataclasses.replace(TINY))
    assert dataclasses.replace(TINY, d_ff=65) != TINY
    with pytest.raises(TypeError):
        PRESETS["other"] = TINY
    assert isinstance(TINY, TransformerConfig)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_type": "linear", "rope_factor": 0.5}, "rope_factor is 0.5; .*at least 1"),
        ({"rope_type": "llama3"}, "rope_original_max_positions is 0; .*at least 1"),
        (
            {"rope_type": "yarn", "rope_original_max_positions": 8.0},
            "rope_original_max_positions is 8.0; .*integer",
        ),
        (
            {"rope_type": "llama3", "rope_original_max_positions": 8, "rope_low_freq_factor": 4.0},
            "rope_low_freq_factor is 4.0; it must be below rope_high_freq_factor, 4.0",
        ),
        (
            {"rope_type": "yarn", "rope_original_max_positions": 8, "rope_beta_fast": 0.5},
            "rope_beta_slow is 1.0; it must be below rope_beta_fast, 0.5",
        ),
        (
            {"rope_type": "linear", "rope_beta_fast": 16.0},
            "rope_beta_fast is 16.0; rope_type 'linear' does not use it",
        ),
    ],
)
def test_rope_fields_that_do_not_fit_their_type(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **fields)
