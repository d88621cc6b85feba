import dataclasses

import pytest
import transformers
from published_shapes import LLAMA3_8B, QWEN2P5_7B

from dfpo_jax.models.config import PRESETS, TransformerConfig
from dfpo_jax.models.hf_config import FAMILIES, from_hf, hf_family, to_hf

# As in the published config.json files of Qwen3-0.6B, Qwen2.5-7B and Llama 3 and 3.1 (8B).
COMMON = {"hidden_act": "silu", "torch_dtype": "bfloat16"}
QWEN3 = {
    **COMMON,
    "model_type": "qwen3",
    "attention_bias": False,
    "head_dim": 128,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN2 = {
    **COMMON,
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
LLAMA = {
    **COMMON,
    "model_type": "llama",
    "attention_bias": False,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 8192,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "vocab_size": 128256,
}
LLAMA31_ROPE = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def without(mapping, key):
    return {name: value for name, value in mapping.items() if name != key}


@pytest.mark.parametrize(
    ("source", "expected"),
    [(QWEN3, PRESETS["qwen3_0p6b"]), (QWEN2, QWEN2P5_7B), (LLAMA, LLAMA3_8B)],
    ids=["qwen3", "qwen2", "llama"],
)
def test_published_files_give_the_published_sizes(source, expected):
    assert from_hf(source) == expected
    new = {**without(without(source, "rope_theta"), "rope_scaling")}
    new["rope_parameters"] = {"rope_type": "default", "rope_theta": source["rope_theta"]}
    assert from_hf(new) == expected
    config = transformers.AutoConfig.for_model(**source)
    assert from_hf(config) == expected


def test_rope_scaling_of_every_type():
    llama3 = from_hf({**LLAMA, "rope_scaling": LLAMA31_ROPE, "max_position_embeddings": 131072})
    assert llama3 == dataclasses.replace(
        LLAMA3_8B,
        max_positions=131072,
        rope_type="llama3",
        rope_factor=8.0,
        rope_original_max_positions=8192,
    )
    linear = from_hf({**LLAMA, "rope_scaling": {"type": "linear", "factor": 2}})
    assert (linear.rope_type, linear.rope_factor) == ("linear", 2.0)
    yarn = from_hf({**QWEN2, "rope_scaling": YARN})
    assert (yarn.rope_type, yarn.rope_factor) == ("yarn", 4.0)
    assert yarn.rope_attention_factor == pytest.approx(1.1386294)  # 0.1 ln 4 + 1
    both = {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5, "beta_fast": 16, "truncate": False}
    yarn = from_hf({**QWEN2, "rope_parameters": {**both, "rope_theta": 7.0}})
    assert yarn.rope_attention_factor == pytest.approx(1.1386294 / 1.0693147)
    assert (yarn.rope_theta, yarn.rope_beta_fast, yarn.rope_truncate) == (7.0, 16.0, False)
    given = from_hf({**QWEN2, "rope_scaling": {**YARN, "attention_factor": 1.5}})
    assert given.rope_attention_factor == 1.5


def test_overrides_replace_and_stand_in():
    config = from_hf(QWEN3, param_dtype="bfloat16", dtype="float32", max_positions=99)
    assert (config.param_dtype, config.dtype, config.max_positions) == ("bfloat16", "float32", 99)
    assert from_hf(without(LLAMA, "rope_theta"), rope_theta=5e5) == LLAMA3_8B
    assert from_hf(without(QWEN3, "rope_theta"), rope_theta=1e6) == from_hf(QWEN3)
    assert from_hf(without(LLAMA, "torch_dtype")).dtype == "float32"
    plain = from_hf({**LLAMA, "rope_scaling": LLAMA31_ROPE}, rope_type="default")
    assert plain == LLAMA3_8B
    with pytest.raises(ValueError, match="d_modle is not a field of TransformerConfig: .*d_model"):
        from_hf(QWEN3, d_modle=3)


# As published: Llama 1 (two conversions), Llama 2 (7B).
OLD = {
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "pad_token_id": -1,
    "rms_norm_eps": 1e-06,
    "torch_dtype": "float16",
    "vocab_size": 32000,
}
LLAMA1 = {**OLD, "max_sequence_length": 2048}
LLAMA1_AGAIN = {**LLAMA1, "max_position_embeddings": 2048, "pad_token_id": 0}
LLAMA2 = {
    **OLD,
    "max_position_embeddings": 4096,
    "num_key_value_heads": 32,
    "pretraining_tp": 1,
    "rope_scaling": None,
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize(
    ("source", "positions"),
    [(LLAMA1, 2048), (LLAMA1_AGAIN, 2048), (OLD, 2048), (LLAMA2, 4096)],
)
def test_what_old_files_leave_out_is_as_in_transformers(source, positions):
    found, theirs = from_hf(source), transformers.AutoConfig.for_model(**source)
    assert found.num_kv_heads == theirs.num_key_value_heads == 32
    assert found.rope_theta == theirs.rope_parameters["rope_theta"] == 10000.0
    assert found.tie_embeddings is theirs.tie_word_embeddings is False
    assert (found.head_dim, found.dtype, found.max_positions) == (128, "float16", positions)
    scaled = {**source, "rope_scaling": {"type": "linear", "factor": 4.0}}
    assert (from_hf(scaled).rope_theta, from_hf(scaled).rope_factor) == (10000.0, 4.0)
    assert from_hf(source, rope_theta=7.0).rope_theta == 7.0


def test_null_heads_are_all_heads_and_no_head_dim_is_derived():
    assert from_hf({**LLAMA, "num_key_value_heads": None}).num_kv_heads == 32
    assert from_hf({**LLAMA, "head_dim": None}).head_dim == 128
    assert from_hf({**LLAMA, "head_dim": 64}).head_dim == 64


@pytest.mark.parametrize("source", [QWEN3, QWEN2, LLAMA], ids=lambda x: x["model_type"])
def test_a_missing_field_is_named(source):
    needed = set(source) - {
        *("torch_dtype", "attention_bias", "pretraining_tp", "rope_scaling"),
        *("sliding_window", "use_sliding_window", "max_window_layers"),
    }
    if source is LLAMA:  # what the first two generations leave out
        needed -= {"rope_theta", "num_key_value_heads", "tie_word_embeddings"}
        needed -= {"max_position_embeddings"}
    assert len(needed) >= 8
    for key in needed:
        with pytest.raises(ValueError, match=f"{key} is "):
            from_hf(without(source, key))
    for rope in (YARN, LLAMA31_ROPE):
        for key in set(rope) - {"type", "rope_type"}:
            with pytest.raises(ValueError, match=f"{key} is missing from the rope parameters"):
                from_hf({**source, "rope_scaling": without(rope, key)})


@pytest.mark.parametrize(
    ("source", "change", "message"),
    [
        (LLAMA, {"model_type": "mistral"}, "model_type is 'mistral'; .* llama, qwen2, qwen3"),
        (LLAMA, {"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu'"),
        (LLAMA, {"attention_bias": True}, "attention_bias is True"),
        (QWEN3, {"attention_bias": True}, "attention_bias is True"),
        (LLAMA, {"mlp_bias": True}, "mlp_bias is True"),
        (LLAMA, {"quantization_config": {"bits": 4}}, "quantization_config is set"),
        (LLAMA, {"torch_dtype": "float8_e4m3fn"}, "dtype is float8_e4m3fn"),
        (LLAMA, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type is 'dynamic'"),
        (LLAMA, {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        (
            QWEN2,
            {"layer_types": ["full_attention"] * 27 + ["sliding_attention"]},
            "sliding_window is 131072 and some layers use it",
        ),
        (
            QWEN2,
            {"use_sliding_window": True, "max_window_layers": 27},
            "sliding_window is 131072 and some layers use it",
        ),
    ],
)
def test_what_the_decoder_does_not_do_is_refused_by_name(source, change, message):
    with pytest.raises(ValueError, match=message):
        from_hf({**source, **change})


def test_a_window_that_no_layer_uses_is_allowed():
    assert from_hf({**QWEN2, "use_sliding_window": True}) == QWEN2P5_7B
    kinds = ["full_attention"] * 28
    assert from_hf({**QWEN2, "layer_types": kinds}) == QWEN2P5_7B


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rope", ["default", "linear", "llama3", "yarn"])
def test_there_and_back(family, rope):
    _, qkv_bias, qk_norm = FAMILIES[family]
    fields = {"rope_factor": 4.0} if rope != "default" else {}
    if rope in ("llama3", "yarn"):
        fields["rope_original_max_positions"] = 32
    if rope == "yarn":
        fields |= {"rope_attention_factor": 1.2, "rope_truncate": False, "rope_beta_slow": 2.0}
    config = TransformerConfig(
        **{"vocab_size": 9, "d_model": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2},
        **{"head_dim": 16, "d_ff": 5, "max_positions": 128, "rope_type": rope},
        qkv_bias=qkv_bias,
        qk_norm=qk_norm,
        **fields,
    )
    there = to_hf(config, eos_token_id=3)
    assert hf_family(config) == there.model_type == family
    assert there.eos_token_id == 3
    assert from_hf(there) == config
    assert from_hf(there.to_dict()) == config


def test_no_family_has_biases_and_norms():
    config = dataclasses.replace(PRESETS["tiny"], qkv_bias=True, qk_norm=True)
    with pytest.raises(ValueError, match="qkv_bias is True and qk_norm True; no family"):
        to_hf(config)
