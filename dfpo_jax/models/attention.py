"""Causal grouped-query attention with XLA, cuDNN and TPU (splash) back ends."""

import functools
import logging
import math
from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as splash_mask,
)
from jax.sharding import PartitionSpec

from dfpo_jax.models.tiled_attention import tiled_attention
from dfpo_jax.types import Array

_LOG = logging.getLogger(__name__)

IMPLEMENTATIONS = ("auto", "xla", "cudnn", "pallas_tpu")
_NEGATIVE = -0.7 * float(jnp.finfo(jnp.float32).max)
_CUDNN_DTYPES = (jnp.bfloat16, jnp.float16)
_CUDNN_MAX_HEAD_DIM = 128
_LANES = 128  # the TPU kernel needs head width and length to be multiples of it
_LARGEST_BLOCK = 512
_CAUSAL_PIECES = 8
_LONGEST_IN_PIECES, _TILE = 1024, 256  # of XLA's attention


class Segments(NamedTuple):
    """Sequences that share rows, each in columns of its own behind one another.

    Attributes:
      ids: [B, T] integers, which sequence a column belongs to; columns with another number do not
        see one another.
      positions: [B, T] integers, a column's place in its sequence.
    """

    ids: Array
    positions: Array


def attention(
    q: Array, k: Array, v: Array, implementation: str = "auto", segments: Array | None = None
) -> Array:
    """Causal scaled dot-product attention with grouped key and value heads.

        o[b, i, n] = sum_{j <= i} softmax_j(q[b, i, n] . k[b, j, m] / sqrt(H)) v[b, j, m]

    The softmax is float32 whatever the inputs are. There is no other mask than that of `segments`:
    callers place padding after the tokens, where causal attention never reads it.
    Source: Vaswani et al. 2017, section 3.2.1; grouped heads: Ainslie et al. 2023, section 2.2.

    Args:
      q: [B, T, N, H] queries.
      k: [B, T, K, H] keys; K divides N, and query head n reads key head m = n // (N / K).
      v: [B, T, K, H] values.
      implementation: "xla" (any platform), "cudnn" (flash attention on a GPU; bfloat16 or float16),
        "pallas_tpu" (splash attention on a TPU), "auto" (the fused one of the platform). If a
        fused one does not support the type or shape, XLA's is used; on GPUs the log gives each
        reason once. The fused ones keep no [B, T, T] scores in memory,
        nor does XLA's above 1,024 tokens.
      segments: [B, T] integers, or None; the sum then leaves out all j of another segment than i's.

    Returns:
      [B, T, N, H] in the type of `q`.

    Raises:
      ValueError: an unknown `implementation`, or N not a multiple of K.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation is {implementation!r}; it must be one of {', '.join(IMPLEMENTATIONS)}"
        )
    chex.assert_rank([q, k, v], 4)
    batch, length, heads, width = q.shape
    kv_heads = k.shape[2]
    if heads % kv_heads:
        raise ValueError(
            f"q has {heads} heads and k has {kv_heads}; the latter must divide the former"
        )
    chex.assert_shape([k, v], (batch, length, kv_heads, width))
    if implementation == "auto":
        fused = {"gpu": "cudnn", "tpu": "pallas_tpu"}
        implementation = fused.get(jax.default_backend(), "xla")
    if implementation == "cudnn" and _cudnn_can_run(q, k):
        return _cudnn(q, k, v, segments)
    if implementation == "pallas_tpu" and splash_can_run(q, k):
        return _splash(q, k, v, segments)
    return _xla(q, k, v, segments)


def _cudnn_can_run(q: Array, k: Array) -> bool:
    """Whether cuDNN supports these types and shapes; if not, logs the reason once."""
    width = q.shape[-1]
    if q.shape[1] == 1:  # initialising the parameters traces one token; do not log that
        return False
    if q.dtype not in _CUDNN_DTYPES:
        return _refuse(f"type {q.dtype}; it takes bfloat16 and float16")
    if width % 8 or width > _CUDNN_MAX_HEAD_DIM:
        return _refuse(f"head width {width}; it takes multiples of 8 up to {_CUDNN_MAX_HEAD_DIM}")
    if not _mesh_divides(k):
        return _refuse(f"{k.shape[0]} rows and {k.shape[2]} key heads; the mesh must divide both")
    return True


@functools.cache
def _refuse(reason: str) -> bool:
    """Logs, once, why cuDNN is not used; returns False."""
    _LOG.warning("attention by XLA, not cuDNN: %s", reason)
    return False


def _cudnn(q: Array, k: Array, v: Array, segments: Array | None = None) -> Array:
    """Fused attention; its gradient needs an even length."""
    inputs = (_lengthened(x, 2) for x in (q, k, v))
    mask = None
    if segments is not None:
        segments = _lengthened(segments, 2)
        mask = (segments[:, :, None] == segments[:, None, :])[:, None]
    out = jax.nn.dot_product_attention(*inputs, mask=mask, is_causal=True, implementation="cudnn")
    return out[:, : q.shape[1]]


def _lengthened(x: Array, multiple: int) -> Array:
    """Pads T of [B, T, ...] to a multiple with zeros, which no earlier query reads."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % multiple)) + ((0, 0),) * (x.ndim - 2))


def _xla(q: Array, k: Array, v: Array, segments: Array | None) -> Array:
    """Attention in pieces of the queries, each with the keys up to its last query.

    Long sequences in tiles of queries and keys instead: as fast there, with memory that grows with
    the length and not with its square. Short ones take up to 1.3 times as long in tiles.
    """
    length = q.shape[1]
    if length > _LONGEST_IN_PIECES:
        return tiled_attention(q, k, v, segments, _TILE)
    block = max(_LANES, -(-length // (_LANES * _CAUSAL_PIECES)) * _LANES)
    ends = [*range(block, length, block), length]
    out = []
    for start, end in zip([0, *ends], ends, strict=False):
        same = None
        if segments is not None:
            same = segments[:, start:end, None] == segments[:, None, :end]
        out.append(_xla_piece(q[:, start:end], k[:, :end], v[:, :end], same))
    return jnp.concatenate(out, axis=1)


def _xla_piece(q: Array, k: Array, v: Array, same: Array | None) -> Array:
    """Two batched matrix products around a float32 softmax, which is normalised at the end.

    The queries belong to the last of the keys; `same` [B, queries, keys] says which of these are of
    their segment.
    """
    batch, queries, heads, width = q.shape
    keys, kv_heads = k.shape[1], k.shape[2]
    group = heads // kv_heads
    q = q.reshape(batch, queries, kv_heads, group, width)
    # The heads of a group and their rows form one axis, so that each product has plain matrices.
    q = q.transpose(0, 2, 3, 1, 4).reshape(batch, kv_heads, group * queries, width)
    k, v = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
    scores = jnp.einsum("bkqh,bksh->bkqs", q, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, kv_heads, group, queries, keys)
    seen = jnp.tri(queries, keys, keys - queries, dtype=bool)[None, None, None]
    if same is not None:
        seen = seen & same[:, None, None]
    scores = jnp.where(seen, scores * width**-0.5, _NEGATIVE)
    largest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - largest)
    total = jnp.sum(weights, axis=-1)
    weights = weights.astype(q.dtype).reshape(batch, kv_heads, group * queries, keys)
    out = jnp.einsum("bkqs,bksh->bkqh", weights, v, preferred_element_type=jnp.float32)
    out = out.reshape(batch, kv_heads, group, queries, width) / total[..., None]
    return out.astype(q.dtype).transpose(0, 3, 1, 2, 4).reshape(batch, queries, heads, width)


def splash_can_run(q: Array, k: Array) -> bool:
    """Whether the TPU kernel supports these shapes, whole and split by the current mesh."""
    if q.shape[1] < _LANES or q.shape[-1] % _LANES:
        return False
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.size > 1 and not nn.get_logical_axis_rules():
        return False  # the compiler cannot split a kernel by itself
    return _mesh_divides(k)


def _mesh_divides(k: Array) -> bool:
    """Whether the current mesh and rules divide the rows and heads of [B, T, K, H]."""
    shape = dict(jax.sharding.get_abstract_mesh().shape)

    def parts(axes):
        axes = (axes,) if isinstance(axes, str) else axes or ()
        return math.prod(shape.get(axis, 1) for axis in axes)

    if not nn.get_logical_axis_rules():
        return True
    spec = _kernel_spec("kv_heads")
    return all(n % parts(axes) == 0 for n, axes in zip(k.shape, spec, strict=False))


def _kernel_spec(heads: str) -> PartitionSpec:
    """How the current logical rules split [B, T, heads, H] over the mesh."""
    return nn.logical_to_mesh_axes(("batch", None, heads, None))


def _splash(
    q: Array, k: Array, v: Array, segments: Array | None = None, interpret: bool = False
) -> Array:
    """Splash attention: each device handles its own rows and heads, with scores in fast memory."""
    length = q.shape[1]
    inputs = [_lengthened(x, _LANES) for x in (q, k, v)]
    heads, kv_heads = _kernel_spec("heads"), _kernel_spec("kv_heads")
    specs = [heads, kv_heads, kv_heads]
    if segments is not None:
        inputs.append(_lengthened(segments.astype(jnp.int32), _LANES))
        specs.append(nn.logical_to_mesh_axes(("batch", None)))
    run = functools.partial(_splash_local, interpret=interpret)
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.size > 1:
        run = jax.shard_map(run, in_specs=tuple(specs), out_specs=heads, check_vma=False)
    return run(*inputs)[:, :length]


def _splash_local(
    q: Array, k: Array, v: Array, segments: Array | None = None, *, interpret: bool
) -> Array:
    """The kernel, once per row and key head: [B, T, N, H] -> [B, T, N, H]."""
    batch, length, heads, width = q.shape
    group = heads // k.shape[2]
    block = next(b for b in (_LARGEST_BLOCK, 256, _LANES) if length % b == 0)
    sizes = {
        name: block
        for name in ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv")
        + ("block_kv_dkv_compute", "block_q_dq", "block_kv_dq")
    }
    kernel = splash.make_splash_mqa_single_device(
        splash_mask.MultiHeadMask([splash_mask.CausalMask((length, length))] * group),
        block_sizes=splash.BlockSizes(**sizes),
        interpret=interpret,
    )
    grouped = (q * width**-0.5).astype(q.dtype).reshape(batch, length, -1, group, width)
    grouped = jnp.moveaxis(grouped, 1, 3)  # [B, K, G, T, H]
    keys, values = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
    if segments is None:
        out = jax.vmap(jax.vmap(kernel))(grouped, keys, values)
    else:
        ids = splash.SegmentIds(segments, segments)
        out = jax.vmap(jax.vmap(kernel, (0, 0, 0, None)))(grouped, keys, values, ids)
    return jnp.moveaxis(out, 3, 1).reshape(q.shape)
