"""Configuration of the decoder: a frozen, validated dataclass and presets of known models."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from dfpo_jax.models.lora import LoraConfig

DTYPES = ("float32", "bfloat16", "float16")
REMAT = ("none", "full", "dots", "offload")
ATTENTION = ("auto", "xla", "cudnn", "pallas_tpu")
ROPE_TYPES = ("default", "linear", "llama3", "yarn")

# The fields that each type uses besides `rope_theta`.
ROPE_FIELDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "default": (),
        "linear": ("rope_factor",),
        "llama3": (
            "rope_factor",
            "rope_original_max_positions",
            "rope_low_freq_factor",
            "rope_high_freq_factor",
        ),
        "yarn": (
            "rope_factor",
            "rope_original_max_positions",
            "rope_beta_slow",
            "rope_beta_fast",
            "rope_attention_factor",
            "rope_truncate",
        ),
    }
)
ROPE_NUMBERS = (
    "rope_theta",
    "rope_factor",
    "rope_low_freq_factor",
    "rope_high_freq_factor",
    "rope_beta_slow",
    "rope_beta_fast",
    "rope_attention_factor",
)


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes and options of a decoder of the Llama, Qwen2 and Qwen3 families.

    Hashable, so it may be a static argument of `jax.jit`. Use `dataclasses.replace` to change a
    field of a preset; the result is validated again.

    Attributes:
      vocab_size: number of token ids (rows of the embedding).
      d_model: width of the residual stream.
      num_layers: number of decoder layers, which a scan stacks.
      num_heads: query heads.
      num_kv_heads: key and value heads; divides `num_heads` (grouped queries).
      head_dim: width of one head, even (rotary embedding rotates pairs).
      d_ff: width of the gated MLP.
      rope_theta: base of the rotary frequencies.
      rope_type: how the frequencies are scaled to a longer context, see `rope.rope_frequencies`;
        fields below that a type does not use must keep their defaults.
      rope_factor: divisor of the slow frequencies (linear, llama3, yarn), at least 1.
      rope_original_max_positions: context length before the scaling (llama3, yarn need it).
      rope_low_freq_factor: turns over that context below which llama3 divides.
      rope_high_freq_factor: turns above which llama3 does not change a frequency.
      rope_beta_slow: turns below which yarn divides.
      rope_beta_fast: turns above which yarn does not change a frequency.
      rope_attention_factor: yarn's factor of cosines and sines; published models use
        0.1 ln(rope_factor) + 1.
      rope_truncate: whether yarn rounds the bounds of its ramp outwards to whole pairs.
      norm_eps: epsilon of the RMS norms.
      init_std: standard deviation of initial embeddings and kernels, divided by
        sqrt(2 num_layers) for kernels that write to the residual stream. Narrow models learn
        faster with about 1 / sqrt(d_model).
      tie_embeddings: whether the output projection is the transposed embedding.
      qkv_bias: biases on the query, key and value projections (Qwen2).
      qk_norm: RMS norm over each head's query and key before the rotation (Qwen3).
      max_positions: longest sequence or cache, in tokens.
      dtype: compute type of matrix products and activations; norms, softmax and logits are always
        float32.
      param_dtype: storage type of parameters.
      remat: which activations of a layer are kept for the gradient: "dots" keeps the results of
        products with weights and recomputes the rest, in half of the memory that "none" needs to
        keep all, and in less time; "full" keeps only a layer's input; "offload" is "full" with that
        input in the host's memory (the platform must offer "pinned_host").
      attention: back end, see `attention.attention`.
      lora: low-rank updates, trained instead of the parameters, see `lora.LoraConfig`.

    Raises:
      ValueError: a field is out of range; the message names field, value and what is allowed.
    """

    vocab_size: int
    d_model: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    rope_theta: float = 10000.0
    rope_type: str = "default"
    rope_factor: float = 1.0
    rope_original_max_positions: int = 0
    rope_low_freq_factor: float = 1.0
    rope_high_freq_factor: float = 4.0
    rope_beta_slow: float = 1.0
    rope_beta_fast: float = 32.0
    rope_attention_factor: float = 1.0
    rope_truncate: bool = True
    norm_eps: float = 1e-6
    init_std: float = 0.02
    tie_embeddings: bool = True
    qkv_bias: bool = False
    qk_norm: bool = False
    max_positions: int = 2048
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: str = "dots"
    attention: str = "auto"
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)

    def __post_init__(self):
        """Validates every field."""
        for name in (
            "vocab_size",
            "d_model",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "d_ff",
            "max_positions",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be an integer of at least 1")
        for name in ("norm_eps", "init_std", *ROPE_NUMBERS):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise ValueError(f"{name} is {value!r}; it must be a number above 0")
        for name in ("tie_embeddings", "qkv_bias", "qk_norm", "rope_truncate"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ValueError(f"{name} is {value!r}; it must be True or False")
        for name, allowed in (
            ("dtype", DTYPES),
            ("param_dtype", DTYPES),
            ("remat", REMAT),
            ("attention", ATTENTION),
            ("rope_type", ROPE_TYPES),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads is {self.num_kv_heads}; it must divide num_heads, {self.num_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; it must be even")
        if not isinstance(self.lora, LoraConfig):
            raise ValueError(f"lora is {self.lora!r}; it must be a LoraConfig")
        self._check_rope()

    def without_lora(self) -> "TransformerConfig":
        """The same model without LoRA, as folded and published parameters need it."""
        return dataclasses.replace(self, lora=LoraConfig())

    def _check_rope(self):
        """Validates the fields of the rope type, and that no field it ignores is set."""
        for field in dataclasses.fields(self):
            known = field.name in ("rope_theta", "rope_type") or not field.name.startswith("rope_")
            value = getattr(self, field.name)
            if known or field.name in ROPE_FIELDS[self.rope_type] or value == field.default:
                continue
            raise ValueError(
                f"{field.name} is {value!r}; rope_type {self.rope_type!r} does not use it, so it "
                f"must be {field.default!r}"
            )
        if self.rope_factor < 1:
            raise ValueError(f"rope_factor is {self.rope_factor!r}; it must be at least 1")
        length = self.rope_original_max_positions
        needs_length = "rope_original_max_positions" in ROPE_FIELDS[self.rope_type]
        if type(length) is not int or (needs_length and length < 1):
            raise ValueError(
                f"rope_original_max_positions is {length!r}; rope_type {self.rope_type!r} needs an "
                "integer of at least 1"
            )
        for low, high in (
            ("rope_low_freq_factor", "rope_high_freq_factor"),
            ("rope_beta_slow", "rope_beta_fast"),
        ):
            if not getattr(self, low) < getattr(self, high):
                raise ValueError(
                    f"{low} is {getattr(self, low)!r}; it must be below {high}, "
                    f"{getattr(self, high)!r}"
                )


PRESETS: Mapping[str, TransformerConfig] = MappingProxyType(
    {
        "tiny": TransformerConfig(
            vocab_size=64,
            d_model=32,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            head_dim=8,
            d_ff=64,
            max_positions=128,
        ),
        "qwen3_0p6b": TransformerConfig(
            vocab_size=151936,
            d_model=1024,
            num_layers=28,
            num_heads=16,
            num_kv_heads=8,
            head_dim=128,
            d_ff=3072,
            rope_theta=1e6,
            qk_norm=True,
            max_positions=40960,
            dtype="bfloat16",
        ),
        "qwen3_1p7b": TransformerConfig(
            vocab_size=151936,
            d_model=2048,
            num_layers=28,
            num_heads=16,
            num_kv_heads=8,
            head_dim=128,
            d_ff=6144,
            rope_theta=1e6,
            qk_norm=True,
            max_positions=40960,
            dtype="bfloat16",
        ),
        "qwen3_8b": TransformerConfig(
            vocab_size=151936,
            d_model=4096,
            num_layers=36,
            num_heads=32,
            num_kv_heads=8,
            head_dim=128,
            d_ff=12288,
            rope_theta=1e6,
            tie_embeddings=False,
            qk_norm=True,
            max_positions=40960,
            dtype="bfloat16",
        ),
    }
)
