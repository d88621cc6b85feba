"""Configuration of the decoder: a frozen, validated dataclass and presets of known models."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

DTYPES = ("float32", "bfloat16", "float16")
REMAT = ("none", "full", "dots", "offload")
ATTENTION = ("auto", "xla", "cudnn", "pallas_tpu")


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes and options of a decoder of the Llama, Qwen2 and Qwen3 families.

    Hashable, so it may be a static argument of `jax.jit`. Use `dataclasses.replace` to change a
    field of a preset; the result is validated again.

    Attributes:
      vocab_size: number of token ids (rows of the embedding).
      d_model: width of the residual stream.
      num_layers: decoder layers, always stacked by a scan.
      num_heads: query heads.
      num_kv_heads: key and value heads; divides `num_heads` (grouped queries).
      head_dim: width of one head, even (rotary embedding rotates pairs).
      d_ff: width of the gated MLP.
      rope_theta: base of the rotary frequencies.
      norm_eps: epsilon of the RMS norms.
      init_std: standard deviation of initial embeddings and kernels; those that write to the
        residual stream get it divided by sqrt(2 num_layers). Narrow models learn faster with
        about 1 / sqrt(d_model).
      tie_embeddings: whether the output projection is the transposed embedding.
      qkv_bias: biases on the query, key and value projections (Qwen2).
      qk_norm: RMS norm over each head's query and key before the rotation (Qwen3).
      max_positions: longest sequence or cache, in slots.
      dtype: compute type of matrix products and activations; norms, softmax and logits are always
        float32.
      param_dtype: storage type of parameters.
      remat: what the backward pass keeps of a layer: "none" keeps every activation, "dots" the
        results of products with weights, "full" its input alone and recomputes the rest, "offload"
        is "full" with that input in the host's memory (the platform must offer "pinned_host").
      attention: back end, see `attention.attention`.

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
    norm_eps: float = 1e-6
    init_std: float = 0.02
    tie_embeddings: bool = True
    qkv_bias: bool = False
    qk_norm: bool = False
    max_positions: int = 2048
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: str = "none"
    attention: str = "auto"

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
        for name in ("rope_theta", "norm_eps", "init_std"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise ValueError(f"{name} is {value!r}; it must be a number above 0")
        for name in ("tie_embeddings", "qkv_bias", "qk_norm"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ValueError(f"{name} is {value!r}; it must be True or False")
        for name, allowed in (
            ("dtype", DTYPES),
            ("param_dtype", DTYPES),
            ("remat", REMAT),
            ("attention", ATTENTION),
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
        "llama3_8b": TransformerConfig(
            vocab_size=128256,
            d_model=4096,
            num_layers=32,
            num_heads=32,
            num_kv_heads=8,
            head_dim=128,
            d_ff=14336,
            rope_theta=5e5,
            norm_eps=1e-5,
            tie_embeddings=False,
            max_positions=8192,
            dtype="bfloat16",
        ),
        "qwen2p5_7b": TransformerConfig(
            vocab_size=152064,
            d_model=3584,
            num_layers=28,
            num_heads=28,
            num_kv_heads=4,
            head_dim=128,
            d_ff=18944,
            rope_theta=1e6,
            tie_embeddings=False,
            qkv_bias=True,
            max_positions=32768,
            dtype="bfloat16",
        ),
    }
)
