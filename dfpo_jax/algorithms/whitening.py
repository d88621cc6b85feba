"""Features that a critic's head reads, brought to mean 0 and covariance 1 (ours).

A policy's hidden states vary mostly along a few directions, those that tell the next token. What
tells whether a response will be right lies in the others, with a hundredth of the variance or less,
and gradient descent learns along these a hundred times as slowly. Whitened features have all
directions alike.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dfpo_jax.types import Array, ArrayTree

MOMENTUM = 0.9  # of the statistics; until 9 rollouts were seen, all count alike


def init_whitening(width: int) -> ArrayTree:
    """Statistics of no rollout yet, boxes.

    "mean" [W], "covariance" [W, W], "inverse" [W, W], with which centred features are multiplied,
    and "seen" [], the number of rollouts.
    """

    def boxed(x):
        return nn.LogicallyPartitioned(x.astype(jnp.float32), (None,) * x.ndim)

    square = jnp.zeros((width, width))
    found = {"mean": square[0], "covariance": square, "inverse": jnp.eye(width)}
    return jax.tree.map(boxed, found | {"seen": jnp.zeros(())})


def observe_features(old: ArrayTree, features: Array, mask: Array, floor: float) -> ArrayTree:
    """The statistics with those of one more rollout.

    Means over all rollouts, and from the tenth on exponential ones with momentum 0.9, so that they
    follow the policy. "inverse" is L^-1 with L L^T = covariance + floor (mean variance) I. A
    rollout without valid tokens changes nothing.

    Args:
      old: statistics.
      features: [B, T, W] of s_0 .. s_{T-1}.
      mask: [B, T] the states that count.
      floor: share of the features' mean variance that is added to each direction's, above 0:
        directions below it are noise of the statistics.
    """
    features, mask = features.astype(jnp.float32), mask.astype(jnp.float32)
    count, width = jnp.sum(mask), features.shape[-1]
    weights = mask / jnp.maximum(count, 1.0)
    features = jnp.where(mask[..., None] > 0, features, 0.0)
    mean = jnp.einsum("btw,bt->w", features, weights)
    centred = (features - mean[None, None]) * jnp.sqrt(weights)[..., None]
    covariance = jnp.einsum("btv,btw->vw", centred, centred)
    seen = jnp.minimum(old["seen"], MOMENTUM / (1.0 - MOMENTUM))
    new = {"mean": mean, "covariance": covariance}
    found = {name: (seen * old[name] + new[name]) / (seen + 1.0) for name in new}
    variance = jnp.trace(found["covariance"]) / width
    # Features that never vary, of a trunk that is all 0, stay as they are.
    added = jnp.where(variance > 0.0, floor * variance, 1.0) * jnp.eye(width)
    factor = jnp.linalg.cholesky(found["covariance"] + added)
    found["inverse"] = jax.scipy.linalg.solve_triangular(factor, jnp.eye(width), lower=True)
    found["seen"] = old["seen"] + 1.0
    return jax.tree.map(lambda x, y: jnp.where(count > 0, x, y), found, dict(old))


def whitened(statistics: ArrayTree, features: Array) -> Array:
    """Features x [B, T, W] as "inverse" (x - "mean"), in float32; the statistics are constants."""
    statistics = jax.lax.stop_gradient(statistics)
    centred = features.astype(jnp.float32) - statistics["mean"][None, None]
    return jnp.einsum("btw,vw->btv", centred, statistics["inverse"])
