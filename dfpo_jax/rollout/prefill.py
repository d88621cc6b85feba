"""The model reads prompts, before their responses are decoded."""

import jax
import jax.numpy as jnp
from flax import struct

from dfpo_jax.models import decode
from dfpo_jax.models.packing import pack, plan_rows
from dfpo_jax.models.transformer import Transformer
from dfpo_jax.rollout.sampling import SamplingConfig
from dfpo_jax.sharding import batch_devices
from dfpo_jax.types import Array, ArrayTree


@struct.dataclass
class Prompts:
    """The prompts that slots start from, in G groups: one per device that splits the batch.

    Attributes:
      cache: G * N rows with keys and values of all tokens but the last; their columns come first.
      states: [G * N, P - 1, D] hidden states at all slots but the last.
      token: [G, N] the last token, which the first step reads.
      valid: [G, N] bool, False for an empty prompt, which has no token.
      wanted: [G, N] bool, whether there shall be responses.
    """

    cache: decode.KVCache
    states: Array
    token: Array
    valid: Array
    wanted: Array


def groups_of(prompt_tokens: Array) -> int:
    """Number of devices that prompts [N, P] are split over.

    Raises:
      ValueError: they do not divide N.
    """
    groups = batch_devices()
    if len(prompt_tokens) % groups:
        raise ValueError(
            f"prompt_tokens has {len(prompt_tokens)} rows; the mesh's data axes, {groups} devices, "
            "must divide them"
        )
    return groups


def prefill(
    model: Transformer,
    params: ArrayTree,
    tokens: Array,
    mask: Array,
    wanted: Array,
    config: SamplingConfig,
    groups: int,
) -> Prompts:
    """Runs all prompt tokens but the last through the model, in pieces of the rows.

    Args:
      model, params: the policy.
      tokens, mask: [N, P], left-padded.
      wanted: [N] bool, the prompts that get responses.
      config: rows of a piece, whether prompts are packed into them, and the type of the cache.
      groups: devices that the prompts are split over.
    """
    valid = mask.astype(bool)
    grouped = {
        "token": tokens[:, -1].reshape(groups, -1),
        "valid": valid[:, -1].reshape(groups, -1),
        "wanted": wanted.reshape(groups, -1),
    }
    # An empty column replaces the last token, because fused attention needs a round length.
    inputs = (jnp.pad(x[:, :-1], ((0, 0), (1, 0))) for x in (tokens, valid))
    read = _packed if config.pack_prompts else _padded
    cache, states = read(model, params, *inputs, config, groups)
    return Prompts(cache=cache, states=states[:, 1:], **grouped)


def _padded(
    model: Transformer,
    params: ArrayTree,
    tokens: Array,
    valid: Array,
    config: SamplingConfig,
    groups: int,
) -> tuple[decode.KVCache, Array]:
    """The cache and hidden states [N, P, D] of a row for each prompt."""
    rows, length = tokens.shape
    own = rows // groups  # rows per device; a piece must have at least one row of each device
    most = min(-(-rows // (config.prefill_rows or rows)), own)
    pieces = next(n for n in range(most, own + 1) if own % n == 0)

    def run(piece):
        hidden, cache = decode.prefill(model, params, *piece, config.cache_dtype)
        return cache.keys, cache.values, cache.valid, hidden

    inputs = (tokens, valid)
    if pieces == 1:
        written = run(inputs)
    else:  # a piece takes every `pieces`-th row, so that rows stay on their device
        split = jax.tree.map(
            lambda x: jnp.swapaxes(x.reshape(-1, pieces, *x.shape[1:]), 0, 1), inputs
        )
        written = jax.tree.map(
            lambda x: jnp.swapaxes(x, 0, 1).reshape(rows, *x.shape[2:]), jax.lax.map(run, split)
        )
    *cache, hidden = written
    return decode.KVCache(*cache, index=jnp.int32(length)), hidden


def _packed(
    model: Transformer,
    params: ArrayTree,
    tokens: Array,
    valid: Array,
    config: SamplingConfig,
    groups: int,
) -> tuple[decode.KVCache, Array]:
    """`_padded`, of rows that each device packs its own prompts into.

    There is room for as many rows as prompts, and those that hold any are read.
    """
    length = tokens.shape[1]
    first = jnp.argsort(~valid, axis=1, stable=True)
    tokens = jnp.take_along_axis(tokens, first, axis=1).reshape(groups, -1, length)
    lengths = jnp.sum(valid, axis=1, dtype=jnp.int32).reshape(groups, -1)
    own = lengths.shape[1]
    rows = min(max(config.prefill_rows // groups, 1), own)
    table, used = jax.vmap(lambda x: plan_rows(x, length))(lengths)
    table = jnp.pad(table, ((0, 0), (0, -own % rows), (0, 0)), constant_values=-1)
    of_device = jax.vmap(lambda x, index: x[index])

    def piece(number):
        prompts = jax.lax.dynamic_slice_in_dim(table, number * rows, rows, 1)
        prompts = prompts.reshape(groups, -1)
        index = jnp.maximum(prompts, 0)
        counts = jnp.where(prompts < 0, 0, of_device(lengths, index)).reshape(-1, 1)
        there = jnp.arange(length)[None] < counts
        packed = pack(of_device(tokens, index).reshape(-1, length), there)
        hidden, (keys, values) = model.apply(
            {"params": params}, packed.tokens, None, with_cache=True, segments=packed.segments
        )
        dtype = config.cache_dtype or keys.dtype
        found = hidden[None], keys.astype(dtype), values.astype(dtype)
        return jax.tree.map(lambda x: x.reshape(len(x), groups, rows, *x.shape[2:]), found)

    def read(number, found):
        put = jax.lax.dynamic_update_slice_in_dim
        return jax.tree.map(lambda x, y: put(x, y, number * rows, 2), found, piece(number))

    shapes = jax.eval_shape(piece, jnp.int32(0))
    empty = jax.tree.map(
        lambda x: jnp.zeros((*x.shape[:2], table.shape[1], *x.shape[3:]), x.dtype), shapes
    )
    pieces = (jnp.max(used) + rows - 1) // rows
    hidden, keys, values = jax.lax.fori_loop(0, pieces, read, empty)
    begins = _begins(table, lengths, length)

    def unpacked(x, columns):
        """[L, G, rows, P, ...] -> [L, N, P, ...], these columns [N, P] of each prompt."""
        index = begins[..., None] + columns.reshape(groups, own, length)
        index = jnp.clip(index, 0, x.shape[2] * length - 1).reshape(groups, -1)
        x = x.reshape(*x.shape[:2], -1, *x.shape[4:])
        found = jax.vmap(of_device, (0, None))(x, index)
        return found.reshape(len(x), groups * own, length, *x.shape[3:])

    columns = jnp.broadcast_to(jnp.arange(length)[None], valid.shape)
    hidden = unpacked(hidden, jnp.argsort(first, axis=1))[0]
    written = unpacked(keys, columns), unpacked(values, columns)
    lengths = lengths.reshape(-1)
    return decode.filled_cache(model.config, *written, lengths, config.cache_dtype), hidden


def _begins(table: Array, lengths: Array, length: int) -> Array:
    """The column, of those of all packed rows of a device, where each prompt begins: [G, N]."""
    groups, own = lengths.shape
    flat = table.reshape(groups, -1)
    counts = jax.vmap(lambda x, index: x[jnp.maximum(index, 0)])(lengths, flat)
    counts = jnp.where(flat < 0, 0, counts).reshape(table.shape)
    starts = jnp.cumsum(counts, axis=2) - counts
    starts = (starts + length * jnp.arange(table.shape[1])[None, :, None]).reshape(groups, -1)
    index = jnp.where(flat < 0, own, flat)  # beyond the end: dropped
    put = jax.vmap(lambda index, new: jnp.zeros(own, jnp.int32).at[index].set(new, mode="drop"))
    return put(index, starts)
