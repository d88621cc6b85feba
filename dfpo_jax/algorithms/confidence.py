"""What the policy's own probabilities say about a response so far, for the critic to read (ours).

A hidden state says little about whether what was written is right: the policy has no reason to keep
it. A token that the policy itself found improbable is often an error, and so is a response whose
tokens are improbable together.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dfpo_jax.types import Array, ArrayTree

FEATURES = 6


def confidence_features(log_probs: Array, entropy: Array, mask: Array, tokens: int) -> Array:
    """Features of s_0 .. s_R, all in [0, 1].

    With p_j the probability of token j, over the valid tokens j < i, in this order: 1 less p of the
    last of them, less their least p, less the product and less the geometric mean of their p, the
    entropy of the policy at s_i over its largest, log V (0 at s_R, after which nothing follows),
    and i / R. All but the entropy are 0 at s_0: a constant of all prompts, added to their states,
    would be larger than what the states differ by, and a head learns that difference the slower.

    Args:
      log_probs: [B, R] nats.
      entropy: [B, R] nats, at s_0 .. s_{R-1}.
      mask: [B, R]; other tokens count as certain.
      tokens: V.

    Returns:
      [B, R + 1, 6] float32; never differentiated.
    """
    length = mask.shape[1]
    log_probs = log_probs * mask

    def before(x):
        return jnp.pad(x, ((0, 0), (1, 0)))

    total = before(jnp.cumsum(log_probs, axis=1))
    count = before(jnp.cumsum(mask, axis=1))
    logs = (
        before(log_probs),
        before(jax.lax.cummin(log_probs, axis=1)),
        total,
        total / jnp.maximum(count, 1.0),
    )
    share = jnp.pad(entropy, ((0, 0), (0, 1))) / jnp.log(float(tokens))
    place = jnp.broadcast_to(jnp.arange(length + 1.0) / length, total.shape)
    doubts = [-jnp.expm1(x) for x in logs]
    features = jnp.stack([*doubts, share, place], axis=-1)
    return jax.lax.stop_gradient(features)


def init_confidence(key: Array, width: int) -> ArrayTree:
    """The kernel [6, D] that maps features to what is added to states; a partitioning box."""
    init = nn.with_logical_partitioning(nn.initializers.normal(1.0), (None, "embed"))
    return {"kernel": init(key, (FEATURES, width), jnp.float32)}


def with_confidence(critic: ArrayTree, states: Array, features: Array | None) -> Array:
    """States [B, T, D] plus the mapped features [B, T, 6]; the states themselves without any."""
    if features is None:
        return states
    return states + (features @ critic["confidence"]["kernel"]).astype(states.dtype)
