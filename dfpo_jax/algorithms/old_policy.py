"""The policy that an iteration starts with, evaluated on the rollout, and its shaped rewards."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import struct

from dfpo_jax import ops
from dfpo_jax.algorithms.confidence import confidence_features
from dfpo_jax.algorithms.config import AlgorithmConfig
from dfpo_jax.algorithms.trunk import (
    evaluate,
    evaluate_at,
    join_sequence,
    response_features,
    response_states,
)
from dfpo_jax.models import lora
from dfpo_jax.models.packing import Layout, padded
from dfpo_jax.models.transformer import Transformer
from dfpo_jax.objectives import Objective, Old
from dfpo_jax.types import Array, ArrayTree, Rollout, Steps, TrainState


def first_policy_features(
    model: Transformer,
    config: AlgorithmConfig,
    state: TrainState,
    rollout: Rollout,
    temperature: float,
) -> Array:
    """`trunk.response_features` [B, 2 D + 2] of a rollout under the policy that the run began with.

    Args:
      model, config, temperature: of the algorithm.
      state: with a reference.
      rollout: B responses.
    """
    length = rollout.tokens.shape[1]
    shape = (length, temperature, config.log_probs.chunk)
    found = evaluate(model, _first_policy(state), *join_sequence(rollout), *shape)
    return response_features(response_states(found.hidden, length), found.log_probs, rollout.mask)


def _first_policy(state: TrainState) -> ArrayTree:
    kept = lora.split(state.params["policy"])[1]
    return lora.join(state.reference, jax.lax.stop_gradient(kept))


@struct.dataclass
class OldPolicy:
    """A rollout under the old policy.

    Attributes:
      sequence, valid: [B, P + R].
      old: the old policy and the reference, as objectives see them.
      importance: [B, R] truncated sampler-to-trainer weights (1 where switched off).
      steps: the token MDP, with rewards in value units.
      confidence: [B, R + 1, 6] what the critic reads of the policy's probabilities, or None.
    """

    sequence: Array
    valid: Array
    old: Old
    importance: Array
    steps: Steps
    confidence: Array | None = None


def evaluate_old(
    model: Transformer,
    config: AlgorithmConfig,
    objectives: Mapping[str, Objective],
    state: TrainState,
    rollout: Rollout,
    temperature: float,
    layout: Layout = padded,
) -> OldPolicy:
    """Evaluate the old policy and, where an objective needs them, reference and expert.

    The reward of a response sits on its last valid token; objectives add rewards of single tokens;
    all are brought to value units. `layout` says how the decoder is computed; where the rollout has
    the hidden states, it is not.
    """
    sequence, valid = join_sequence(rollout)
    policy = jax.tree.map(jax.lax.stop_gradient, state.params["policy"])
    needs = frozenset().union(*(objective.needs for objective in objectives.values()))

    def evaluated(params, sequence, valid):
        shape = (rollout.tokens.shape[1], temperature, config.log_probs.chunk)
        return layout(
            lambda x, y, packed: evaluate(model, params, x, y, *shape, packed), sequence, valid
        )

    # What is unused of either costs nothing.
    if rollout.states is None:
        found = evaluated(policy, sequence, valid)
    else:
        inputs = (rollout.states, rollout.tokens, temperature, config.log_probs.chunk)
        found = evaluate_at(model, policy, *inputs)
    log_probs, reference, expert = rollout.log_probs, None, None
    if config.log_probs.recompute:
        log_probs = found.log_probs
    if "reference" in needs:
        reference = evaluated(_first_policy(state), sequence, valid).log_probs
    if "expert" in needs:
        theirs = rollout.replace(tokens=rollout.expert.tokens, mask=rollout.expert.mask)
        expert = evaluated(policy, *join_sequence(theirs)).log_probs * theirs.mask
    mask, bootstrap = rollout.mask, jnp.zeros_like(rollout.truncated)
    if config.returns.overlong == "mask":
        mask = mask * (1.0 - rollout.truncated[:, None].astype(jnp.float32))
    elif config.returns.overlong == "bootstrap":
        bootstrap = rollout.truncated
    old = Old(found.hidden, log_probs, reference, mask, state.controls, expert)
    shift, scale = state.controls["value_shift"], state.controls["value_scale"]
    outcomes = jnp.asarray(rollout.rewards, jnp.float32)
    if not config.returns.outcome:  # 0 in value units, in which the frozen critic is read
        outcomes = jnp.where(bootstrap, 0.0, shift)
    rewards = ops.place_at_last(outcomes, mask)
    for objective in objectives.values():
        if objective.reward is not None:
            rewards = rewards + objective.reward(old)
    rewards = ops.normalise_rewards(rewards, mask, bootstrap, shift, scale, config.returns.discount)
    importance = jnp.ones_like(mask)
    if config.objective.importance_cap > 0.0:
        importance = ops.truncated_importance_weights(
            log_probs, rollout.log_probs, cap=config.objective.importance_cap
        )
    steps = Steps(rewards, mask, bootstrap, config.returns.discount)
    confidence = None
    if config.critic.confidence:
        tokens = model.config.vocab_size
        confidence = confidence_features(found.log_probs, found.entropy, rollout.mask, tokens)
    return OldPolicy(sequence, valid, old, importance, steps, confidence)
