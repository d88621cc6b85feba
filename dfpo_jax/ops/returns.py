"""Returns of a rollout as a token MDP: successors, values after the end, value units."""

import jax
import jax.numpy as jnp

from dfpo_jax.ops.masking import last_valid
from dfpo_jax.types import Array


def successor_index(mask: Array) -> Array:
    """Index of the state after each token, skipping masked gaps: [B, R] int32 in [1, R].

    For the last valid token of a row this is the slot right after it; positions without a valid
    successor hold the same (R at most).
    """
    length = mask.shape[1]
    slots = jnp.arange(length)
    later = jnp.where(mask > 0, slots[None, :], length)
    after = jax.lax.cummin(later, axis=1, reverse=True)
    after = jnp.concatenate([after[:, 1:], jnp.full_like(after[:, :1], length)], axis=1)
    return jnp.where(after == length, slots[None, :] + 1, after)


def final_values(values: Array, mask: Array, bootstrap: Array) -> Array:
    """Value [B, ...] after the last valid token: 0 unless the row bootstraps.

    Args:
      values: [B, R + 1, ...] of states s_0 .. s_R.
      mask: [B, R].
      bootstrap: [B] bool.
    """
    end = jnp.max(jnp.where(mask > 0, jnp.arange(1, mask.shape[1] + 1)[None, :], 0), axis=1)
    index = end.reshape(end.shape + (1,) * (values.ndim - 1))
    last = jnp.take_along_axis(values, index, axis=1)[:, 0]
    return jnp.where(bootstrap.reshape(bootstrap.shape + (1,) * (last.ndim - 1)), last, 0.0)


def normalise_rewards(
    rewards: Array, mask: Array, bootstrap: Array, shift: Array, scale: Array, discount: float
) -> Array:
    """Token rewards in value units z = (G - mu) / sigma; ours.

    A middle token's reward becomes (r + (gamma - 1) mu) / sigma and the last one's
    (r - mu) / sigma, so that the normalised recursion gives the normalised return.

    Args:
      rewards: [B, R] raw token rewards.
      mask: [B, R].
      bootstrap: [B] bool; such a row has no terminal token.
      shift: [] mu.
      scale: [] sigma.
      discount: gamma.
    """
    terminal = last_valid(mask) * (1.0 - bootstrap[:, None].astype(jnp.float32))
    offset = jnp.where(terminal > 0, -shift, (discount - 1.0) * shift)
    return (rewards + offset) / scale * mask
