"""The model reads prompts, before their responses are decoded."""

import jax
import jax.numpy as jnp
from flax import struct

from dfpo_jax.models import decode
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
      config: rows of a piece, and the type of the cache.
      groups: devices that the prompts are split over.
    """
    valid = mask.astype(bool)
    rows, length = tokens.shape
    grouped = {
        "token": tokens[:, -1].reshape(groups, -1),
        "valid": valid[:, -1].reshape(groups, -1),
        "wanted": wanted.reshape(groups, -1),
    }
    own = rows // groups  # rows per device; a piece must have at least one row of each device
    wanted = min(-(-rows // (config.prefill_rows or rows)), own)
    pieces = next(n for n in range(wanted, own + 1) if own % n == 0)

    def run(piece):
        hidden, cache = decode.prefill(model, params, *piece, config.cache_dtype)
        return cache.keys, cache.values, cache.valid, hidden[:, 1:]

    # An empty column replaces the last token, because fused attention needs a round length.
    inputs = tuple(jnp.pad(x[:, :-1], ((0, 0), (1, 0))) for x in (tokens, valid))
    if pieces == 1:
        written = run(inputs)
    else:  # a piece takes every `pieces`-th row, so that rows stay on their device
        split = jax.tree.map(
            lambda x: jnp.swapaxes(x.reshape(-1, pieces, *x.shape[1:]), 0, 1), inputs
        )
        written = jax.tree.map(
            lambda x: jnp.swapaxes(x, 0, 1).reshape(rows, *x.shape[2:]), jax.lax.map(run, split)
        )
    *written, states = written
    cache = decode.KVCache(*written, index=jnp.int32(length))
    return Prompts(cache=cache, states=states, **grouped)
