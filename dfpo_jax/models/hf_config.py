"""Converts configurations of `transformers` models to ours and back."""

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dfpo_jax.models.config import DTYPES, TransformerConfig

if TYPE_CHECKING:  # it imports PyTorch where there is one, which takes seconds
    from transformers import PretrainedConfig

# Our field -> theirs, for values that need no conversion.
FIELDS = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "d_ff": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
    "max_positions": "max_position_embeddings",
}
# Our field -> a key of their rope parameters, and whether the key is required.
ROPE_KEYS = {
    "linear": {"rope_factor": ("factor", True)},
    "llama3": {
        "rope_factor": ("factor", True),
        "rope_original_max_positions": ("original_max_position_embeddings", True),
        "rope_low_freq_factor": ("low_freq_factor", True),
        "rope_high_freq_factor": ("high_freq_factor", True),
    },
    "yarn": {
        "rope_factor": ("factor", True),
        "rope_original_max_positions": ("original_max_position_embeddings", True),
        "rope_beta_slow": ("beta_slow", False),
        "rope_beta_fast": ("beta_fast", False),
        "rope_truncate": ("truncate", False),
    },
    "default": {},
}
# model_type -> (classes' prefix, qkv_bias, qk_norm).
FAMILIES = {
    "llama": ("Llama", False, False),
    "qwen2": ("Qwen2", True, False),
    "qwen3": ("Qwen3", False, True),
}


# Values that files of a family may omit, as the first two generations of Llama do.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": {
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "max_position_embeddings": 2048,
    }
}


def from_hf(
    hf_config: "PretrainedConfig | Mapping[str, Any]", **overrides: Any
) -> TransformerConfig:
    """The configuration of a Llama, Qwen2 (2.5) or Qwen3 model of `transformers`.

    It reads the old keys of the rotary embedding (`rope_theta`, `rope_scaling`) and the new one
    (`rope_parameters`). Fields that Llama 1 and 2 omit get the values they were trained with: theta
    10000, as many key-value heads as heads, an untied head, 2,048 positions (or
    `max_sequence_length`). The other families must have every field. The compute type is the one
    that the source declares, or float32; parameters are stored in float32 unless overridden.

    Args:
      hf_config: a `transformers` configuration, or a mapping such as a parsed config.json.
      **overrides: fields of `TransformerConfig`; they replace the source's values and supply
        those that it lacks.

    Raises:
      ValueError: a required field is missing, or the source asks for something that the decoder
        does not support; the message names the field.
    """
    source = dict(hf_config) if isinstance(hf_config, Mapping) else hf_config.to_dict()
    names = [field.name for field in dataclasses.fields(TransformerConfig)]
    for name in overrides:
        if name not in names:
            raise ValueError(f"{name} is not a field of TransformerConfig: {', '.join(names)}")
    family = source.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"model_type is {family!r}; it must be one of {', '.join(FAMILIES)}")
    _refuse(source, family)
    _, qkv_bias, qk_norm = FAMILIES[family]
    values: dict[str, Any] = {"qkv_bias": qkv_bias, "qk_norm": qk_norm}
    for ours, theirs in FIELDS.items():
        if ours not in overrides:
            values[ours] = _field(source, family, theirs)
    declared = source.get("dtype") or source.get("torch_dtype")
    if declared is not None and "dtype" not in overrides:
        values["dtype"] = str(declared).removeprefix("torch.")
        if values["dtype"] not in DTYPES:
            raise ValueError(f"dtype is {declared}; it must be one of {', '.join(DTYPES)}")
    return TransformerConfig(**{**values, **_rope_fields(source, family, overrides), **overrides})


def _field(source: Mapping[str, Any], family: str, key: str) -> Any:
    """A required value, or its default if it is null or missing."""
    if source.get(key) is not None:
        return source[key]
    if key == "head_dim" and family != "qwen3":
        return _field(source, family, "hidden_size") // _field(
            source, family, "num_attention_heads"
        )
    if key == "num_key_value_heads" and (key in source or family == "llama"):
        return _field(source, family, "num_attention_heads")
    if key == "max_position_embeddings" and source.get("max_sequence_length") is not None:
        return source["max_sequence_length"]  # its name in files of Llama 1
    default = DEFAULTS.get(family, {}).get(key)
    if default is None:
        raise ValueError(f"{key} is missing from the model's configuration; pass an override")
    return default


def _refuse(source: Mapping[str, Any], family: str) -> None:
    """Raises if the source asks for something that the decoder does not support."""
    if _field(source, family, "hidden_act") != "silu":
        raise ValueError(f"hidden_act is {source['hidden_act']!r}; only 'silu' is supported")
    for key in ("attention_bias", "mlp_bias"):
        if source.get(key):
            raise ValueError(f"{key} is {source[key]!r}; the decoder has no such biases")
    if source.get("quantization_config"):
        raise ValueError("quantization_config is set; only plain float weights are supported")
    sliding = False
    if source.get("layer_types") is not None:
        sliding = any(kind != "full_attention" for kind in source["layer_types"])
    elif source.get("use_sliding_window") and source.get("sliding_window") is not None:
        first = _field(source, family, "max_window_layers")
        sliding = first < _field(source, family, "num_hidden_layers")
    if sliding:
        raise ValueError(
            f"sliding_window is {source.get('sliding_window')} and some layers use it; only full "
            "attention is supported (layer_types, use_sliding_window)"
        )


def _rope_fields(
    source: Mapping[str, Any], family: str, overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """Our fields of the rotary embedding, except overridden ones."""
    rope = {**(source.get("rope_scaling") or {}), **(source.get("rope_parameters") or {})}
    theta = overrides.get("rope_theta", rope.get("rope_theta"))
    theta = _field(source, family, "rope_theta") if theta is None else theta
    partial = rope.get("partial_rotary_factor", source.get("partial_rotary_factor"))
    if partial not in (None, 1.0):
        raise ValueError(f"partial_rotary_factor is {partial}; only whole heads are rotated")
    values = {"rope_theta": float(theta)}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if overrides.get("rope_type", kind) != kind:
        return values  # the override replaces the whole scaling
    if kind not in ROPE_KEYS:
        raise ValueError(f"rope_type is {kind!r}; it must be one of {', '.join(ROPE_KEYS)}")
    values["rope_type"] = kind
    for ours, (key, needed) in ROPE_KEYS[kind].items():
        if rope.get(key) is not None:
            is_float = ours not in ("rope_original_max_positions", "rope_truncate")
            values[ours] = float(rope[key]) if is_float else rope[key]
        elif needed and ours not in overrides:
            raise ValueError(f"{key} is missing from the rope parameters of type {kind!r}")
    if kind == "yarn" and "rope_attention_factor" not in overrides:
        factor = overrides.get("rope_factor", values.get("rope_factor"))
        values["rope_attention_factor"] = _yarn_attention_factor(rope, factor)
    return values


def _yarn_attention_factor(rope: Mapping[str, Any], factor: float) -> float:
    """The given factor, or 0.1 ln(factor) + 1 (YaRN, section 3.4), or its ratio for two mscales."""
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    growth = 0.1 * math.log(factor)
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return (rope["mscale"] * growth + 1.0) / (rope["mscale_all_dim"] * growth + 1.0)
    return growth + 1.0


def hf_family(config: TransformerConfig) -> str:
    """The `model_type` whose decoder this configuration describes.

    Raises:
      ValueError: no family has both `qkv_bias` and `qk_norm`.
    """
    for family, (_, qkv_bias, qk_norm) in FAMILIES.items():
        if (config.qkv_bias, config.qk_norm) == (qkv_bias, qk_norm):
            return family
    raise ValueError(
        f"qkv_bias is {config.qkv_bias} and qk_norm {config.qk_norm}; no family of "
        f"{', '.join(FAMILIES)} has that"
    )


def to_hf(config: TransformerConfig, **extra: Any) -> "PretrainedConfig":
    """The `transformers` configuration of the family that `hf_family` names.

    Args:
      config: our configuration; its `param_dtype` becomes the declared type.
      **extra: more fields of the result, such as `eos_token_id`.
    """
    import transformers

    family = hf_family(config)
    prefix = FAMILIES[family][0]
    values = {theirs: getattr(config, ours) for ours, theirs in FIELDS.items()}
    if family == "qwen2" and config.head_dim * config.num_heads == config.d_model:
        del values["head_dim"]  # Qwen2 derives it
    rope = {"rope_type": config.rope_type, "rope_theta": config.rope_theta}
    for ours, (key, _) in ROPE_KEYS[config.rope_type].items():
        rope[key] = getattr(config, ours)
    if config.rope_type == "yarn":
        rope["attention_factor"] = float(config.rope_attention_factor)
    return getattr(transformers, f"{prefix}Config")(
        **values,
        hidden_act="silu",
        initializer_range=config.init_std,
        rope_parameters=rope,
        architectures=[f"{prefix}ForCausalLM"],
        dtype=config.param_dtype,
        **extra,
    )
