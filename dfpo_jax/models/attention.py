"""Grouped-query attention: one entry point, with XLA and cuDNN back ends."""

import chex
import jax
import jax.numpy as jnp

from dfpo_jax.types import Array

IMPLEMENTATIONS = ("auto", "xla", "cudnn")
_NEGATIVE = -0.7 * float(jnp.finfo(jnp.float32).max)
_CUDNN_DTYPES = (jnp.bfloat16, jnp.float16)
_CUDNN_MAX_HEAD_DIM = 128


def attention(q: Array, k: Array, v: Array, mask: Array, implementation: str = "auto") -> Array:
    """Scaled dot-product attention with grouped key and value heads.

        o[b, i, n] = sum_j softmax_j(q[b, i, n] . k[b, j, n // (N / K)] / sqrt(H)) v[b, j, ...]

    over the keys `j` with `mask[b, i, j]`. A query without any allowed key gives 0, with a
    gradient of 0. The softmax is float32 whatever the inputs are.
    Source: Vaswani et al. 2017, section 3.2.1; grouped heads: Ainslie et al. 2023, section 2.2.

    Args:
      q: [B, Tq, N, H] queries.
      k: [B, Tk, K, H] keys; K divides N, and query head n reads key head n // (N / K).
      v: [B, Tk, K, H] values.
      mask: [B, Tq, Tk] bool, True where a query may attend to a key.
      implementation: "xla" (any platform), "cudnn" (flash attention; bfloat16 or float16 on a GPU),
        "auto" (cuDNN where it can run, XLA elsewhere).

    Returns:
      [B, Tq, N, H] in the type of `q`.

    Raises:
      ValueError: an unknown `implementation`, or N not a multiple of K.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation is {implementation!r}; it must be one of {', '.join(IMPLEMENTATIONS)}"
        )
    chex.assert_rank([q, k, v, mask], [4, 4, 4, 3])
    batch, queries, heads, width = q.shape
    keys, kv_heads = k.shape[1], k.shape[2]
    if heads % kv_heads:
        raise ValueError(
            f"q has {heads} heads and k has {kv_heads}; the latter must divide the former"
        )
    chex.assert_shape([k, v], (batch, keys, kv_heads, width))
    chex.assert_shape(mask, (batch, queries, keys))
    chex.assert_type(mask, bool)
    if implementation == "cudnn" or (implementation == "auto" and _cudnn_can_run(q)):
        return _cudnn(q, k, v, mask)
    return _xla(q, k, v, mask)


def _cudnn_can_run(q: Array) -> bool:
    """Whether the process runs on a GPU and cuDNN has a kernel for this type and width."""
    width = q.shape[-1]
    return (
        jax.default_backend() == "gpu"
        and q.dtype in _CUDNN_DTYPES
        and width % 8 == 0
        and width <= _CUDNN_MAX_HEAD_DIM
    )


def _cudnn(q: Array, k: Array, v: Array, mask: Array) -> Array:
    """Fused attention; rows without a key are zeroed afterwards."""
    out = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], implementation="cudnn")
    return jnp.where(mask.any(axis=-1)[:, :, None, None], out, jnp.zeros_like(out))


def _xla(q: Array, k: Array, v: Array, mask: Array) -> Array:
    """Two einsums around a float32 softmax."""
    batch, queries, heads, width = q.shape
    kv_heads = k.shape[2]
    grouped = q.reshape(batch, queries, kv_heads, heads // kv_heads, width)
    scores = jnp.einsum("bqkgh,bskh->bkgqs", grouped, k, preferred_element_type=jnp.float32)
    allowed = mask[:, None, None]
    scores = jnp.where(allowed, scores * width**-0.5, _NEGATIVE)
    # A row without a key is uniform after the softmax; the second `where` makes it 0, and both
    # `where`s pass a gradient of exactly 0 to what is not allowed.
    weights = jnp.where(allowed, jax.nn.softmax(scores, axis=-1), 0.0).astype(q.dtype)
    out = jnp.einsum("bkgqs,bskh->bqkgh", weights, v)
    return out.reshape(batch, queries, heads, width)
