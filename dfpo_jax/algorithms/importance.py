"""How far the policy is from the one that sampled, as metrics."""

import jax.numpy as jnp

from dfpo_jax import ops
from dfpo_jax.types import Array, Batch, Loss


def weight_metrics(log_probs: Array, batch: Batch) -> dict[str, Loss]:
    """Sequence weights w = pi(y) / mu(y) and their squares, as metrics (VCPO, arXiv 2602.17616).

    (E w)^2 / E w^2 is the effective share of the samples, exact over micro-batches and devices.
    """
    weight = ops.sequence_weight(log_probs, batch.behaviour_log_probs, batch.mask)[:, None]
    per_token = {"weight": weight, "squared_weight": jnp.square(weight)}
    return {
        name: Loss(x * jnp.ones_like(batch.mask), weight=0.0, aggregation="sequence_mean")
        for name, x in per_token.items()
    }
