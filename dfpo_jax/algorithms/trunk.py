"""Hidden states and what is read from them: the policy's, and those a critic's head reads."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dfpo_jax import ops
from dfpo_jax.critics import Critics
from dfpo_jax.models import lora, vocabulary
from dfpo_jax.models.packing import Layout, Packed, padded
from dfpo_jax.models.transformer import Transformer
from dfpo_jax.types import Array, ArrayTree, Rollout


def join_sequence(rollout: Rollout) -> tuple[Array, Array]:
    """Prompt and response as one sequence: tokens and validity, both [B, P + R].

    Validity covers every slot before the response's end, so that the model still reads a masked gap
    inside a response (a tool turn).
    """
    tokens = jnp.concatenate([rollout.prompt_tokens, rollout.tokens], axis=1)
    reached = jnp.cumsum(rollout.mask[:, ::-1], axis=1)[:, ::-1] > 0
    valid = jnp.concatenate([rollout.prompt_mask, reached.astype(jnp.float32)], axis=1)
    return tokens, valid


def hidden_states(
    model: Transformer,
    params: ArrayTree,
    sequence: Array,
    valid: Array,
    packed: Packed | None = None,
) -> Array:
    """Hidden states [B, P + R, D]; the position before a token predicts it."""
    if packed is not None:
        return packed.unpack(_packed_states(model, params, packed))
    hidden, _ = model.apply({"params": params}, sequence, valid)
    return hidden


def _packed_states(model: Transformer, params: ArrayTree, packed: Packed) -> Array:
    hidden, _ = model.apply({"params": params}, packed.tokens, None, segments=packed.segments)
    return hidden


class Evaluated(NamedTuple):
    """A policy on sequences.

    Attributes:
      hidden: [B, P + R, D] hidden states.
      log_probs, entropy: [B, R] of the response's tokens.
    """

    hidden: Array
    log_probs: Array
    entropy: Array


def evaluate(
    model: Transformer,
    params: ArrayTree,
    sequence: Array,
    valid: Array,
    length: int,
    temperature: float,
    chunk: int,
    packed: Packed | None = None,
) -> Evaluated:
    """A policy on sequences [B, P + R] with R = `length`; see `token_statistics` for the others.

    Values outside `valid` mean nothing.
    """
    if packed is None:
        hidden = hidden_states(model, params, sequence, valid)
        return evaluate_at(model, params, hidden, sequence[:, -length:], temperature, chunk)
    rows = _packed_states(model, params, packed)
    inputs = (rows.astype(model.config.dtype), _kernel(model, params), packed.targets)
    found = vocabulary.token_statistics(*inputs, temperature, chunk)
    statistics = (packed.unpack(x)[:, -length - 1 : -1] for x in found)
    return Evaluated(packed.unpack(rows), *statistics)


def evaluate_at(
    model: Transformer,
    params: ArrayTree,
    hidden: Array,
    tokens: Array,
    temperature: float,
    chunk: int,
) -> Evaluated:
    """A policy on responses [B, R], given its hidden states [B, P + R, D]."""
    inputs = (response_states(hidden, tokens.shape[1]), tokens, temperature, chunk)
    return Evaluated(hidden, *token_statistics(model, params, *inputs))


def response_states(hidden: Array, length: int) -> Array:
    """Hidden states [B, R + 1, D] of s_0 .. s_R, where s_i predicts response token i.

    They mean nothing after the response, nor in s_0 where a row's prompt has no token.
    """
    return hidden[:, -length - 1 :]


def response_features(states: Array, log_probs: Array, mask: Array) -> Array:
    """A summary of a whole response, [B, 2 D + 2] float32.

    The state after its last valid token, the mean of the states after each of them, and the mean
    and the least of their log-probabilities; 0 for a response without valid tokens.

    Args:
      states: [B, R + 1, D] of s_0 .. s_R.
      log_probs: [B, R].
      mask: [B, R].
    """
    after, mask = states[:, 1:].astype(jnp.float32), mask.astype(jnp.float32)
    log_probs = jnp.where(mask > 0, log_probs, 0.0)
    last = jnp.einsum("brd,br->bd", after, ops.last_valid(mask))
    count = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1.0)
    mean = jnp.einsum("brd,br->bd", after, mask) / count
    likely = jnp.sum(log_probs, axis=1, keepdims=True) / count
    least = jnp.min(log_probs, axis=1, keepdims=True)
    return jnp.concatenate([last, mean, likely, least], axis=-1)


def token_statistics(
    model: Transformer,
    params: ArrayTree,
    states: Array,
    tokens: Array,
    temperature: float,
    chunk: int = 0,
) -> tuple[Array, Array]:
    """Log-probabilities and entropies, both [B, R], of tokens given states s_0 .. s_{R-1}.

    Args:
      model: the policy.
      params: its parameters, whose output projection is read.
      states: [B, R + 1, D] hidden states.
      tokens: [B, R].
      temperature: divides the logits.
      chunk: time steps at once, see `vocabulary.token_statistics`.
    """
    inputs = (states[:, :-1].astype(model.config.dtype), _kernel(model, params))
    return vocabulary.token_statistics(*inputs, tokens, temperature, chunk)


def top_log_probs(
    model: Transformer,
    params: ArrayTree,
    states: Array,
    tokens: Array,
    log_probs: Array,
    others: Array,
    temperature: float,
) -> Array:
    """Log-probabilities [B, R, K] of other tokens [B, R, K] than those of the response; stopped.

    Args:
      model, params, states, tokens, temperature: as of `token_statistics`.
      log_probs: [B, R] of `tokens`.
      others: [B, R, K].
    """
    inputs = (states[:, :-1].astype(model.config.dtype), _kernel(model, params))
    return vocabulary.other_log_probs(
        *jax.lax.stop_gradient((*inputs, tokens, log_probs)), others, temperature
    )


def _kernel(model: Transformer, params: ArrayTree) -> Array:
    """The output projection [V, D]."""
    return params["embedding"] if model.config.tie_embeddings else params["head"].T


def init_critic(config: Critics, policy_params: ArrayTree, head_params: ArrayTree) -> ArrayTree:
    """Critic parameters: the head, and with `trunk="own"` a copy of what trains in the policy."""
    if config.trunk != "own":
        return {"head": head_params}
    trained, _ = lora.split(policy_params)
    trunk = {name: leaf for name, leaf in trained.items() if name != "head"}
    # Two networks that share a buffer could not both be donated to the train step.
    return {"head": head_params, "trunk": jax.tree.map(jnp.copy, trunk)}


def critic_width(config: Critics, model: Transformer) -> int:
    """Features of a state that the critic's head reads."""
    return model.config.d_model * (2 if config.pooled else 1)


def critic_states(
    config: Critics,
    model: Transformer,
    params: ArrayTree,
    hidden: Array | None,
    sequence: Array,
    valid: Array,
    length: int,
    layout: Layout = padded,
) -> Array:
    """Features [B, R + 1, `critic_width`] that the critic's head reads at s_0 .. s_R.

    The trunk's hidden states; with `critic.pooled` followed by the mean of all those so far, from
    the first token of the prompt to s_i (ours): a state says what comes next, and the mean also
    what was asked.

    Args:
      config: which trunk, and whether to pool.
      model: the transformer of both trunks.
      params: of all networks; an own trunk uses only the policy's parameters that LoRA freezes.
      hidden: [B, P + R, D], the policy's hidden states (unused with an own trunk).
      sequence, valid: [B, P + R].
      length: R.
      layout: how an own trunk is computed.
    """
    if config.trunk == "own":
        _, kept = lora.split(params["policy"])
        trunk = lora.join(params["critic"]["trunk"], jax.lax.stop_gradient(kept))
        if not model.config.tie_embeddings:
            # The decoder requires its output projection, which nothing here reads.
            shape = (model.config.d_model, model.config.vocab_size)
            trunk = {**trunk, "head": jnp.zeros(shape, model.config.param_dtype)}
        hidden = layout(functools.partial(hidden_states, model, trunk), sequence, valid)
    elif config.trunk == "detached":
        hidden = jax.lax.stop_gradient(hidden)
    states = response_states(hidden, length)
    if not config.pooled:
        return states
    means = response_states(_means_so_far(hidden, valid), length)
    return jnp.concatenate([states, means], axis=-1)


def _means_so_far(hidden: Array, valid: Array) -> Array:
    """[B, T, D] means of the valid states up to each slot; 0 before the first."""
    weights = valid.astype(jnp.float32)[..., None]
    total = jnp.cumsum(jnp.where(weights > 0, hidden.astype(jnp.float32), 0.0), axis=1)
    return (total / jnp.maximum(jnp.cumsum(weights, axis=1), 1.0)).astype(hidden.dtype)
