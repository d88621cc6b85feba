"""Supervised fine-tuning on given responses: the warm start before reinforcement learning."""

import jax.numpy as jnp

from dfpo_jax import ops
from dfpo_jax.algorithms.interface import Algorithm, Batch, Context
from dfpo_jax.algorithms.trunk import (
    hidden_states,
    join_sequence,
    response_states,
    token_statistics,
)
from dfpo_jax.models.transformer import Transformer
from dfpo_jax.types import Term


def sft(model: Transformer) -> Algorithm:
    """Token-mean cross-entropy (nats) of the rollout's responses under the policy.

    Args:
      model: the policy.
    """

    def init(key, policy_params):
        del key
        return {"policy": policy_params}

    def prepare(state, rollout, key):
        del state, key
        sequence, valid = join_sequence(rollout)
        batch = Batch(
            row=jnp.arange(len(rollout.tokens)),
            sequence=sequence,
            valid=valid,
            tokens=rollout.tokens,
            mask=rollout.mask,
        )
        return batch, Context(controls={}, policy_scale=jnp.float32(1.0))

    def loss(params, batch, context, key):
        del context, key
        policy = params["policy"]
        hidden = hidden_states(model, policy, batch.sequence, batch.valid)
        states = response_states(hidden, batch.tokens.shape[1])
        log_probs, _ = token_statistics(model, policy, states, batch.tokens, 1.0)
        total, count = ops.masked_sum_and_count(-log_probs, batch.mask)
        return {"policy/cross_entropy": Term(total, count, 1.0)}

    return Algorithm(init, prepare, loss)
