"""Sizes of published models that no configuration of the library runs."""

from dfpo_jax.models.config import TransformerConfig

LLAMA3_8B = TransformerConfig(
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
)
QWEN2P5_7B = TransformerConfig(
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
)
