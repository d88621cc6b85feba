"""Causal attention of long sequences, one tile of the scores at a time."""

import jax
import jax.numpy as jnp
import numpy as np

from dfpo_jax.types import Array

_NEGATIVE = -0.7 * float(jnp.finfo(jnp.float32).max)
_MULTIPLE = 16  # numbers of a CPU's register


def tiled_attention(q: Array, k: Array, v: Array, segments: Array | None, tile: int) -> Array:
    """Causal attention whose scores are in memory for one tile of queries and keys at a time.

    The softmax is accumulated over tiles of keys, s = q . k / sqrt(H), m the largest s so far:

        m' = max(m, max_j s_j),  l' = exp(m - m') l + sum_j exp(s_j - m'),
        o' = exp(m - m') o + sum_j exp(s_j - m') v_j;  the result is o / l.

    The gradient keeps q, k, v, the result and L = m + log l [B, T, N]; it computes the weights
    p = exp(s - L) of each tile anew. Memory grows with T, not with T^2.
    Source: Dao et al. 2022, algorithms 1 and 4; L instead of m and l: Dao 2023, algorithms 1 and 2.

    Args:
      q: [B, T, N, H] queries.
      k, v: [B, T, K, H] keys and values; K divides N.
      segments: [B, T] integers, or None; a query sees the keys of its own segment only.
      tile: queries, and keys, of a tile at most; it shrinks to one that pads T least.

    Returns:
      [B, T, N, H] in the type of `q`; softmax and sums are float32.
    """
    length, kv_heads = q.shape[1], k.shape[2]
    count = -(-length // tile)
    tile = -(-length // count)
    tile += -tile % _MULTIPLE if count > 1 else 0
    padding = ((0, 0), (0, count * tile - length))
    inputs = (jnp.pad(x, (*padding, (0, 0), (0, 0))) for x in (q, k, v))
    if segments is not None:
        segments = jnp.pad(segments, padding).reshape(-1, count, tile).swapaxes(0, 1)
    out = _attend(*(_split(x, count, kv_heads) for x in inputs), segments)
    return _joined(out, tile)[:, :length]


def _split(x: Array, count: int, kv_heads: int) -> Array:
    """[B, T, N, H] -> [count, B, K, R, H], R = N / K * T / count rows: each head's of a group."""
    batch, length, heads, width = x.shape
    x = x.reshape(batch, count, length // count, kv_heads, heads // kv_heads, width)
    return x.transpose(1, 0, 3, 4, 2, 5).reshape(count, batch, kv_heads, -1, width)


def _joined(x: Array, tile: int) -> Array:
    """Undoes `_split`."""
    count, batch, kv_heads, rows, width = x.shape
    x = x.reshape(count, batch, kv_heads, rows // tile, tile, width).transpose(1, 0, 4, 2, 3, 5)
    return x.reshape(batch, count * tile, -1, width)


@jax.custom_vjp
def _attend(q: Array, k: Array, v: Array, ids: Array | None) -> Array:
    """Attention of tiles: q [n, B, K, R, H], k and v [n, B, K, S, H], ids [n, B, S] or None."""
    return _forward(q, k, v, ids)[0]


def _pairs(count: int) -> tuple[Array, Array]:
    """Tiles of queries and keys, (i, j) with j <= i, those of a query tile after one another.

    One loop over them has a static number of turns, and so needs no answer of a GPU's in between.
    """
    return tuple(jnp.asarray(x, jnp.int32) for x in np.tril_indices(count))


def _forward(q: Array, k: Array, v: Array, ids: Array | None) -> tuple[Array, tuple]:
    """The result, and what the gradient needs."""

    def step(carry, pair):
        i, j = pair
        out, largest, total = (_at(x, i) for x in carry)
        scores = _product("bkrh,bksh->bkrs", _at(q, i), _at(k, j)) * q.shape[-1] ** -0.5
        scores = jnp.where(_seen(i, j, q, k, ids), scores, _NEGATIVE)
        # Where no key was seen so far, the weights are 1 until the tile of the query itself, the
        # last one, multiplies them by 0.
        new = jnp.maximum(largest, jnp.max(scores, axis=-1))
        weights = jnp.exp(scores - new[..., None])
        fade = jnp.exp(largest - new)
        more = _product("bkrs,bksh->bkrh", weights.astype(q.dtype), _at(v, j))
        now = out * fade[..., None] + more, new, total * fade + jnp.sum(weights, axis=-1)
        return tuple(_put(x, y, i) for x, y in zip(carry, now, strict=True)), None

    zeros = jnp.zeros(q.shape, jnp.float32)
    start = zeros, jnp.full(q.shape[:-1], _NEGATIVE), zeros[..., 0]
    (out, largest, total), _ = jax.lax.scan(step, start, _pairs(len(q)))
    out = (out / total[..., None]).astype(q.dtype)
    return out, (q, k, v, ids, out, largest + jnp.log(total))


def _backward(kept: tuple, d_out: Array) -> tuple[Array, Array, Array, None]:
    """Gradients of q, k and v. Weights are [keys, queries]: most products then read their rows."""
    q, k, v, ids, out, log_total = kept
    scale = q.shape[-1] ** -0.5
    means = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)

    def step(carry, pair):
        i, j = pair
        q_i, d_out_i, k_j = _at(q, i), _at(d_out, i), _at(k, j)
        logs = _product("bksh,bkrh->bksr", k_j, q_i) * scale - _at(log_total, i)[:, :, None]
        seen = jnp.swapaxes(_seen(i, j, q, k, ids), 2, 3)
        weights = jnp.exp(jnp.where(seen, logs, _NEGATIVE))
        d_weights = _product("bksh,bkrh->bksr", _at(v, j), d_out_i)
        d_scores = weights * (d_weights - _at(means, i)[:, :, None]) * scale
        weights, d_scores = weights.astype(q.dtype), d_scores.astype(q.dtype)
        more = (
            (_product("bksr,bksh->bkrh", d_scores, k_j), i),
            (_product("bksr,bkrh->bksh", d_scores, q_i), j),
            (_product("bksr,bkrh->bksh", weights, d_out_i), j),
        )
        return tuple(_put(x, _at(x, n) + y, n) for x, (y, n) in zip(carry, more, strict=True)), None

    start = tuple(jnp.zeros(x.shape, jnp.float32) for x in (q, k, v))
    grads, _ = jax.lax.scan(step, start, _pairs(len(q)))
    return *(x.astype(y.dtype) for x, y in zip(grads, (q, k, v), strict=True)), None


_attend.defvjp(_forward, _backward)


def _seen(i: Array, j: Array, q: Array, k: Array, ids: Array | None) -> Array:
    """[B or 1, 1, R, S]: whether queries of tile i read keys of tile j."""
    rows, tile = q.shape[3], k.shape[3]
    index = jnp.arange(rows) % tile
    seen = (i * tile + index[:, None] >= j * tile + jnp.arange(tile)[None])[None, None]
    if ids is None:
        return seen
    own = jnp.tile(_at(ids, i), (1, rows // tile))
    return seen & (own[:, None, :, None] == _at(ids, j)[:, None, None])


def _product(subscripts: str, x: Array, y: Array) -> Array:
    return jnp.einsum(subscripts, x, y, preferred_element_type=jnp.float32)


def _at(x: Array, index: Array) -> Array:
    return jax.lax.dynamic_index_in_dim(x, index, keepdims=False)


def _put(x: Array, value: Array, index: Array) -> Array:
    return jax.lax.dynamic_update_index_in_dim(x, value, index, 0)
