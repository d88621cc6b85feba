"""Supervised fine-tuning on given responses: the warm start before reinforcement learning."""

import jax.numpy as jnp

from dfpo_jax import ops
from dfpo_jax.algorithms.base import Algorithm, Batch, Context
from dfpo_jax.algorithms.policy import join_sequence, response_states, token_statistics
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
        del key
        sequence, valid = join_sequence(rollout)
        zeros = jnp.zeros_like(rollout.mask)
        batch = Batch(
            row=jnp.arange(len(rollout.tokens)),
            sequence=sequence,
            valid=valid,
            tokens=rollout.tokens,
            mask=rollout.mask,
            old_log_probs=zeros,
            ref_log_probs=None,
            importance=zeros,
            advantages=zeros,
        )
        return batch, Context(state.kl_coefficient, jnp.float32(1.0))

    def loss(params, batch, context, key):
        del context, key
        length = batch.tokens.shape[1]
        states = response_states(model, params["policy"], batch.sequence, batch.valid, length)
        log_probs, _ = token_statistics(model, params["policy"], states, batch.tokens, 1.0)
        total, count = ops.masked_sum_and_count(-log_probs, batch.mask)
        return {"policy/cross_entropy": Term(total, count, 1.0)}

    return Algorithm(init, prepare, loss)
