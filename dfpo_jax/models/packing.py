"""Sequences packed into rows, so that the decoder pays for tokens and not for padding (ours).

The decoder and the output projection, which cost nearly everything, read packed rows [N, L]: the
tokens of up to `SLOTS` sequences behind one another, which attend to their own sequence alone and
count positions from its start. What they give is moved back to a row per sequence, so that critics,
advantages and objectives know nothing of packing.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from dfpo_jax.models.attention import Segments
from dfpo_jax.sharding import batch_devices
from dfpo_jax.types import Array, Rollout

SLOTS = 8
"""Sequences that a packed row may hold: more lets short ones fill rows, and makes room for them."""


@struct.dataclass
class Packed:
    """N packed rows of the sequences of a batch, SLOTS for each row, some of them empty.

    Attributes:
      tokens: [N, L] int32; 0 behind the last sequence.
      segments: which sequence a column belongs to, and its position there.
      begins: [N, SLOTS] int32, the packed column of a sequence's first slot, if its padding before
        the first token were there too; it may be below 0.
    """

    tokens: Array
    segments: Segments
    begins: Array

    @property
    def targets(self) -> Array:
        """[N, L] the token after each column."""
        return jnp.roll(self.tokens, -1, axis=1)

    def unpack(self, x: Array) -> Array:
        """[N, L, ...] -> [N * SLOTS, L, ...], a row per sequence, with its padding.

        Padding holds what lies beside a sequence in its packed row: finite, and without meaning.
        """
        rows, length = self.tokens.shape
        x = jnp.pad(x, ((0, 0), (length, length)) + ((0, 0),) * (x.ndim - 2))

        def of_row(row, begins):
            return jax.vmap(lambda i: jax.lax.dynamic_slice_in_dim(row, length + i, length))(begins)

        found = jax.vmap(of_row)(x, self.begins)
        return found.reshape(rows * SLOTS, *found.shape[2:])


def plan_rows(lengths: Array, length: int) -> tuple[Array, Array]:
    """Assigns sequences to packed rows: the longest first, each to the first row with room for it.

    Source: first-fit decreasing, Johnson 1973; that a row holds `SLOTS` at most is ours.

    Args:
      lengths: [B] tokens of each sequence, at most `length`.
      length: L, columns of a packed row.

    Returns:
      ([B, SLOTS] int32, the sequences of each row, -1 where a slot is empty; [] int32, how many
      rows hold any).
    """
    count = lengths.shape[0]
    order = jnp.argsort(-lengths)

    def place(rows, tokens):
        free, taken = rows
        row = jnp.argmax((free >= tokens) & (taken < SLOTS))
        slot = taken[row]
        return (free.at[row].add(-tokens), taken.at[row].add(1)), (row, slot)

    empty = (jnp.full(count, length, lengths.dtype), jnp.zeros(count, jnp.int32))
    _, (row, slot) = jax.lax.scan(place, empty, lengths[order])
    table = jnp.full((count, SLOTS), -1, jnp.int32).at[row, slot].set(order.astype(jnp.int32))
    return table, jnp.max(row).astype(jnp.int32) + 1


def plan_packs(lengths: Array, length: int, rows: int) -> tuple[Array, Array]:
    """`plan_rows` in micro-batches of `rows`: ([M, rows, SLOTS] int32, [] how many hold any)."""
    table, used = plan_rows(lengths, length)
    table = jnp.pad(table, ((0, -table.shape[0] % rows), (0, 0)), constant_values=-1)
    return table.reshape(-1, rows, SLOTS), (used + rows - 1) // rows


def pack(sequence: Array, valid: Array) -> Packed:
    """Pack sequences that `plan_rows` has put together.

    Args:
      sequence: [N * SLOTS, L] int32, the sequences of N rows in order of their slots.
      valid: [N * SLOTS, L], 1 on the tokens of a sequence, which have no gap between them; all 0 in
        an empty slot. Those of the sequences of a row are at most L.
    """
    length = sequence.shape[1]
    valid = valid.astype(bool).reshape(-1, SLOTS, length)
    sequence = sequence.reshape(-1, SLOTS, length)
    counts = jnp.sum(valid, axis=2, dtype=jnp.int32)
    ends = jnp.cumsum(counts, axis=1)
    starts = ends - counts
    begins = starts - jnp.argmax(valid, axis=2)  # less the padding before the first token
    columns = jnp.arange(length)[None]
    slot = jnp.sum(columns[..., None] >= ends[:, None], axis=-1)  # SLOTS behind the last one
    inside = slot < SLOTS
    kept = jnp.minimum(slot, SLOTS - 1)

    def at_slot(x):
        return jnp.take_along_axis(x, kept, axis=1)

    index = kept * length + jnp.clip(columns - at_slot(begins), 0, length - 1)
    tokens = jnp.take_along_axis(sequence.reshape(-1, SLOTS * length), index, axis=1)
    return Packed(
        tokens=jnp.where(inside, tokens, 0),
        segments=Segments(slot, jnp.where(inside, columns - at_slot(starts), 0)),
        begins=begins,
    )


def taken(batch: Any, rows: Array) -> Any:
    """The sequences of packed rows, [N * SLOTS, ...] leaves; those of empty slots are 0.

    Args:
      batch: leaves [B, ...].
      rows: [N, SLOTS] of `plan_rows`.
    """
    index = rows.reshape(-1)

    def one(x):
        there = (index >= 0).reshape(-1, *(1,) * (x.ndim - 1))
        found = jnp.where(there, x[jnp.maximum(index, 0)], jnp.zeros((), x.dtype))
        return nn.with_logical_constraint(found, ("batch", *(None,) * (x.ndim - 1)))

    return jax.tree.map(one, batch)


Layout = Callable[[Callable, Array, Array], Any]
"""How a function of sequences is computed: (function, sequence [B, L], valid [B, L]) -> its values,
with a leading axis of B; the function takes sequence, valid and `Packed`, or None for padded rows.
"""


def padded(function: Callable, sequence: Array, valid: Array) -> Any:
    """A row for each sequence, all at once."""
    return function(sequence, valid, None)


def layout_of(packed: Packed | None) -> Layout:
    """All sequences at once, in the rows that they are packed into, or padded ones without any."""
    return lambda function, sequence, valid: function(sequence, valid, packed)


def in_packs(rows: int) -> Layout:
    """Packed rows, `rows` of them at once; nothing may be differentiated through it."""

    def layout(function, sequence, valid):
        count, length = sequence.shape
        packs, used = plan_packs(jnp.sum(valid, axis=1, dtype=jnp.int32), length, rows)

        def one(number):
            tokens, there = taken((sequence, valid), packs[number])
            return function(tokens, there, pack(tokens, there))

        def step(number, found):
            index = packs[number].reshape(-1)
            index = jnp.where(index < 0, count, index)  # beyond the end: dropped
            new = one(number)
            return jax.tree.map(lambda x, y: x.at[index].set(y, mode="drop"), found, new)

        shapes = jax.eval_shape(one, jnp.int32(0))
        zeros = jax.tree.map(lambda x: jnp.zeros((count, *x.shape[1:]), x.dtype), shapes)
        return jax.lax.fori_loop(0, used, step, zeros)

    return layout


def pieces_of(batch: Any, count: int) -> Any:
    """Leaves [B, ...] as `count` pieces of as many rows, [count, B / count, ...]."""

    def split(x):  # every count-th row, so that each device keeps its rows
        found = jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0)
        return nn.with_logical_constraint(found, (None, "batch", *(None,) * (x.ndim - 1)))

    return jax.tree.map(split, batch)


def in_pieces(count: int) -> Layout:
    """Padded rows, in `count` pieces of as many; nothing may be differentiated through it."""

    def layout(function, sequence, valid):
        found = jax.lax.map(lambda x: function(*x, None), pieces_of((sequence, valid), count))
        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), found)

    return layout


def whole_layout(rollout: Rollout, tokens: int = 0, pieces: int = 1) -> Layout:
    """How all sequences of a rollout are read, where nothing is differentiated.

    Args:
      rollout: gives the sizes.
      tokens: 0, or of a pack of sequences.
      pieces: without packs, in how many pieces; it must divide the sequences of a device.
    """
    if tokens == 0:
        return padded if pieces == 1 else in_pieces(pieces)
    length = rollout.prompt_tokens.shape[1] + rollout.tokens.shape[1]
    return in_packs(rows_at_once(tokens, length, len(rollout.tokens)))


def rows_at_once(tokens: int, length: int, batch: int) -> int:
    """Packed rows of a micro-batch: as many as `tokens` fill, at least one for each device.

    Args:
      tokens: of a micro-batch.
      length: L, columns of a packed row.
      batch: sequences that there are.
    """
    devices = batch_devices()
    most = -(-batch // devices)
    return devices * min(max(tokens // (length * devices), 1), most)
