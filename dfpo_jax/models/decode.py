"""The decoder one token at a time: its parameters, prefill, step and cache.

Whole sequences go through `Transformer`; a step computes the same from the parameters that
`gather_params` lays out. Layers are unrolled, and each has its own cache: in a scan every step
would copy a layer's weights and cache out of the stack.
"""

import functools
from collections.abc import Callable
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from dfpo_jax.models import lora
from dfpo_jax.models.config import TransformerConfig
from dfpo_jax.models.rope import apply_rope, rope_tables
from dfpo_jax.models.transformer import RMSNorm, Transformer
from dfpo_jax.sharding import split_rows
from dfpo_jax.types import Array, ArrayTree

_AXES = {
    2: ("batch", "kv_heads", "length", "head_dim"),
    3: ("batch", "kv_heads", "head_dim", "length"),
}
_REMOVED = -0.7 * float(jnp.finfo(jnp.float32).max)
CHUNK = 128  # columns of a cache of more than two chunks that attention reads at once


@struct.dataclass
class KVCache:
    """Keys and values of past tokens.

    Attributes:
      keys: one array per layer, already rotated: [B, K, S, H], or [B, K, H, S] where several
        queries share a key, see `columns_of_keys`.
      values: one array [B, K, S, H] per layer.
      valid: [B, S] bool, True on columns with a token of this row (False: padding or stale).
      index: [] int32, the column that the next step will write.
    """

    keys: tuple[Array, ...]
    values: tuple[Array, ...]
    valid: Array
    index: Array


def columns_of_keys(config: TransformerConfig) -> int:
    """The axis of a cache's keys along which its columns lie.

    The last one where several queries share a key: their product with the keys then takes CPUs a
    sixth to a half of the time. That of a single query is faster in the other order.
    """
    return _columns(config.num_heads // config.num_kv_heads)


def _columns(queries: int) -> int:
    """`columns_of_keys` of so many queries for each key."""
    return 3 if queries > 1 else 2


def init_cache(config: TransformerConfig, batch: int, length: int, dtype: str = "") -> KVCache:
    """An empty cache of `length` columns for `batch` rows, in `dtype` or the compute type.

    Raises:
      ValueError: `length` is below 1 or above `config.max_positions`.
    """
    if not 1 <= length <= config.max_positions:
        raise ValueError(f"length is {length}; it must be between 1 and {config.max_positions}")
    sizes = {"batch": batch, "kv_heads": config.num_kv_heads, "length": length}
    sizes["head_dim"] = config.head_dim

    def zeros(columns):
        shape = tuple(sizes[name] for name in _AXES[columns])
        empty = jnp.zeros(shape, jnp.dtype(dtype or config.dtype))
        return nn.with_logical_constraint(empty, _AXES[columns])

    return KVCache(
        keys=tuple(zeros(columns_of_keys(config)) for _ in range(config.num_layers)),
        values=tuple(zeros(2) for _ in range(config.num_layers)),
        valid=nn.with_logical_constraint(jnp.zeros((batch, length), bool), ("batch", "length")),
        index=jnp.zeros((), jnp.int32),
    )


def gather_params(model: Transformer, params: ArrayTree) -> ArrayTree:
    """Lays out parameters for `step`: in the compute type, one tree per layer, kernels transposed.

    Training splits every matrix over the devices of "fsdp" and gathers it where it is needed.
    Decoding needs every matrix for every token, so this gathers them once; "tensor" still splits
    them. Kernels are [outputs, inputs]: with few rows that order is faster on CPU, and elsewhere
    the compiler chooses the layout. Norm scales keep their type.

    Returns:
      "embedding" [V, D], "head" [V, D] (the same array if they are tied), "final_norm", and
      "layers", a tuple of trees named as in the model.
    """
    config = model.config
    dummy = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    boxed = jax.eval_shape(lambda key, x: model.init(key, x, x)["params"], key, dummy)

    def gather(path, box, x):
        if path[-1].key == "scale":
            return nn.with_logical_constraint(x, box.names)
        names = tuple(None if name == "embed" else name for name in box.names)
        x = x.astype(config.dtype)
        if path[-1].key == "head":
            return nn.with_logical_constraint(x.T, names[::-1])
        if path[-1].key not in ("kernel", lora.A, lora.B):
            return nn.with_logical_constraint(x, names)
        # The number of axes, after "layers", that the product sums over.
        inputs = 2 if path[-2].key == "output" and path[-1].key != lora.B else 1
        order = (0, *range(inputs + 1, x.ndim), *range(1, inputs + 1))
        return nn.with_logical_constraint(x.transpose(order), tuple(names[i] for i in order))

    is_box = lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)  # noqa: E731
    gathered = dict(jax.tree_util.tree_map_with_path(gather, boxed, params, is_leaf=is_box))
    stack = gathered["layers"]
    gathered["layers"] = tuple(
        jax.tree.map(lambda x, i=i: x[i], stack) for i in range(config.num_layers)
    )
    return {"head": gathered["embedding"], **gathered}


def prefill(
    model: Transformer, params: ArrayTree, tokens: Array, valid: Array, dtype: str = ""
) -> tuple[Array, KVCache]:
    """Hidden states [B, T, D] of tokens [B, T], as the model's, and a cache of T columns.

    The cache holds the tokens' keys and values; padding comes last there.

    Args:
      model: the decoder.
      params: the model's parameters, not the result of `gather_params`.
      tokens: [B, T] int32, T >= 1.
      valid: [B, T], 1 on tokens and 0 on padding.
      dtype: of the cache; "" for the compute type.
    """
    hidden, written = model.apply({"params": params}, tokens, valid, with_cache=True)
    lengths = jnp.sum(valid.astype(jnp.int32), axis=1)
    return hidden, filled_cache(model.config, *written, lengths, dtype)


def filled_cache(
    config: TransformerConfig, keys: Array, values: Array, lengths: Array, dtype: str = ""
) -> KVCache:
    """A cache of what the model has written: keys and values [L, B, T, K, H], tokens first.

    Args:
      config: the model's.
      keys, values: of all layers.
      lengths: [B] tokens of each row.
      dtype: of the cache; "" for the compute type.
    """

    def layers(stack, columns):
        stack = jnp.moveaxis(stack.astype(dtype or config.dtype), 2, columns + 1)
        return tuple(nn.with_logical_constraint(x, _AXES[columns]) for x in stack)

    length = keys.shape[2]
    first = jnp.arange(length)[None] < lengths[:, None]
    written = layers(keys, columns_of_keys(config)), layers(values, 2)
    return KVCache(*written, first, jnp.int32(length))


def step(
    config: TransformerConfig,
    gathered: ArrayTree,
    tokens: Array,
    valid: Array,
    cache: KVCache,
    wide: bool = False,
) -> tuple[Array, Array, KVCache]:
    """After one more token per row: logits [B, V] (float32), hidden states [B, D] and the cache.

    The token attends to itself and to every valid column, in any order; of a long cache, chunks
    without any are read on GPUs alone. Its position is the number of valid columns. Its key and
    value go to column `cache.index`, which then grows by one. The caller must keep the index within
    the cache, because a traced index cannot be checked, and may move it back to columns that are no
    longer valid in any row.

    Args:
      config: the model's.
      gathered: from `gather_params`.
      tokens: [B] int32.
      valid: [B] bool, False for rows to skip; what is returned of them is meaningless.
      cache: keys and values of the past tokens.
      wide: whether CPUs multiply rows by kernels; otherwise kernels by columns, see `_times`.
    """
    chex.assert_rank([tokens, valid], 1)
    chex.assert_equal_shape([tokens, valid, cache.valid[:, 0]])
    rope = rope_tables(jnp.sum(cache.valid, axis=1, dtype=jnp.int32)[:, None], config)
    seen = jax.lax.dynamic_update_slice(cache.valid, valid[:, None], (0, cache.index))
    table = nn.with_logical_constraint(gathered["embedding"], ("vocab", None))
    x = jnp.take(table, tokens, axis=0)
    x = nn.with_logical_constraint(x, ("batch", None))
    filled = _filled(seen)
    keys, values = [], []
    product = functools.partial(_product, config, wide)
    for layer, old_keys, old_values in zip(
        gathered["layers"], cache.keys, cache.values, strict=True
    ):
        y = _norm(config, layer["attention_norm"], x)
        q, k, v = _project_heads(config, product, layer["attention"], y, rope)
        keys.append(_written(old_keys, k, cache.index, columns_of_keys(config)))
        values.append(_written(old_values, v, cache.index, 2))
        attended = _attend(q, keys[-1], values[-1], seen, filled)
        x = x + product(layer["attention"]["output"], attended)
        x = nn.with_logical_constraint(x, ("batch", None))
        y, mlp = _norm(config, layer["mlp_norm"], x), layer["mlp"]
        y = jax.nn.silu(product(mlp["gate"], y)) * product(mlp["up"], y)
        x = nn.with_logical_constraint(x + product(mlp["down"], y), ("batch", None))
    x = _norm(config, gathered["final_norm"], x)
    logits = _times(gathered["head"], x, wide, preferred_element_type=jnp.float32)
    logits = nn.with_logical_constraint(logits, ("batch", "vocab"))
    return split_rows(logits), x, KVCache(tuple(keys), tuple(values), seen, cache.index + 1)


def _written(old: Array, new: Array, index: Array, columns: int) -> Array:
    """A cache's keys or values with `new` [B, K, 1, H] at a column."""
    new = jnp.moveaxis(new.astype(old.dtype), 2, columns)
    return jax.lax.dynamic_update_slice_in_dim(old, new, index, columns)


def _norm(config: TransformerConfig, params: ArrayTree, x: Array) -> Array:
    """RMS norm of [..., width]."""
    width, axis = x.shape[-1], "embed"  # the axis names a parameter that exists already
    return RMSNorm(config, width, axis).apply({"params": params}, x)


def _as_written(x: Array) -> Array:
    """On CPU, keeps the compiler from rewriting the transpose of a product as another product."""
    return jax.lax.platform_dependent(x, cpu=jax.lax.optimization_barrier, default=lambda x: x)


def _times(kernel: Array, x: Array, wide: bool, **options: Any) -> Array:
    """[B, inputs] times a kernel [outputs, inputs]: [B, outputs].

    On CPUs, kernel times x^T takes half to two thirds of the time of x times kernel^T with few
    rows; with many, the second form takes that share of the first one's.
    """
    if wide:
        return jnp.matmul(x, kernel.T, **options)
    return _as_written(jnp.matmul(kernel, x.T, **options)).T


def _product(config: TransformerConfig, wide: bool, params: ArrayTree, x: Array) -> Array:
    """[B, inputs] times a kernel [*outputs, *inputs], plus LoRA's update: [B, outputs]."""

    def times(kernel, x):
        return _times(kernel.reshape(-1, x.shape[-1]), x, wide)

    out = times(params["kernel"], x)
    if lora.A in params:  # adding the kernels in bfloat16 would round most of a small update away
        out = out + config.lora.scale * times(params[lora.B], times(params[lora.A], x))
    if "bias" in params:
        out = out + params["bias"].reshape(1, -1)
    return out


def _project_heads(
    config: TransformerConfig, product: Callable[..., Array], params: ArrayTree, x: Array, rope
):
    """Projects x [B, D] to queries [B, K, N / K, H], and keys and values [B, K, 1, H]."""
    batch, width = x.shape[0], config.head_dim
    q, k, v = (
        product(params[name], x).reshape(batch, 1, -1, width) for name in ("query", "key", "value")
    )
    if config.qk_norm:
        q, k = _norm(config, params["query_norm"], q), _norm(config, params["key_norm"], k)
    q, k = apply_rope(q, *rope), apply_rope(k, *rope)
    q = q.reshape(batch, config.num_kv_heads, -1, width)
    return q, jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)


def _filled(seen: Array) -> tuple[Array, Array] | None:
    """Chunks of the columns [B, S], those that any row sees first, and how many these are.

    None where there are so few columns that all are read.
    """
    rows, columns = seen.shape
    if columns <= 2 * CHUNK:
        return None
    seen = jnp.pad(seen, ((0, 0), (0, -columns % CHUNK)))
    some = jnp.any(seen.reshape(rows, -1, CHUNK), axis=(0, 2))
    return jnp.argsort(~some, stable=True), jnp.sum(some)


def _attend(
    q: Array, keys: Array, values: Array, seen: Array, filled: tuple[Array, Array] | None
) -> Array:
    """Attention of one query per row, see `attention.attention`: [B, N * H].

    On GPUs all columns are read: there a loop waits for the host in every turn. Elsewhere only
    filled chunks are, and summed with a maximum that grows (Milakov and Gimelshein 2018,
    algorithm 3).

    Args:
      q: [B, K, G, H].
      keys: [B, K, S, H], or [B, K, H, S] with G above 1.
      values: [B, K, S, H].
      seen: [B, S] bool.
      filled: of `seen`, see `_filled`.
    """
    if filled is None:
        return _attend_to_all(q, keys, values, seen)
    return jax.lax.platform_dependent(
        *(q, keys, values, seen, *filled),
        cuda=_attend_to_all,
        rocm=_attend_to_all,
        default=_attend_to_filled,
    )


def _scores(q: Array, keys: Array, allowed: Array) -> Array:
    keys, order = keys.astype(q.dtype), "bkhs" if _columns(q.shape[2]) == 3 else "bksh"
    scores = jnp.einsum(f"bkgh,{order}->bkgs", q, keys, preferred_element_type=jnp.float32)
    return jnp.where(allowed, scores * q.shape[-1] ** -0.5, _REMOVED)


def _attend_to_all(q: Array, keys: Array, values: Array, seen: Array, *filled: Array) -> Array:
    del filled
    allowed = seen[:, None, None]
    weights = jnp.where(allowed, jax.nn.softmax(_scores(q, keys, allowed), axis=-1), 0.0)
    out = jnp.einsum("bkgs,bksh->bkgh", weights.astype(q.dtype), values.astype(q.dtype))
    return out.reshape(q.shape[0], -1)


def _attend_to_filled(
    q: Array, keys: Array, values: Array, seen: Array, chunks: Array, count: Array
) -> Array:
    def add_chunk(number, found):
        out, total, largest = found
        first = chunks[number] * CHUNK
        start = jnp.minimum(first, seen.shape[1] - CHUNK)  # the last chunk begins within another
        allowed = jax.lax.dynamic_slice_in_dim(seen, start, CHUNK, 1)[:, None, None]
        allowed &= (start + jnp.arange(CHUNK) >= first).reshape(1, 1, 1, -1)
        axes = ((keys, _columns(q.shape[2])), (values, 2))
        chunk = [jax.lax.dynamic_slice_in_dim(x, start, CHUNK, axis) for x, axis in axes]
        scores = _scores(q, chunk[0], allowed)
        new = jnp.maximum(largest, jnp.max(scores, axis=-1, keepdims=True))
        weights, shrunk = jnp.where(allowed, jnp.exp(scores - new), 0.0), jnp.exp(largest - new)
        inputs = weights.astype(q.dtype), chunk[1].astype(q.dtype)
        more = jnp.einsum("bkgs,bksh->bkgh", *inputs, preferred_element_type=jnp.float32)
        total = total * shrunk + jnp.sum(weights, axis=-1, keepdims=True)
        return out * shrunk + more, total, new

    zeros = jnp.zeros((*q.shape[:3], 1), jnp.float32)
    none = (jnp.zeros(q.shape, jnp.float32), zeros, zeros + _REMOVED)
    out, total, _ = jax.lax.fori_loop(0, count, add_chunk, none)
    out = out / jnp.where(total > 0.0, total, 1.0)
    return out.astype(q.dtype).reshape(q.shape[0], -1)
