"""The policy side that algorithms share: shaped rewards, log-probabilities, policy losses."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from dfpo_jax import ops
from dfpo_jax.algorithms.base import Batch, Context, PolicyConfig
from dfpo_jax.models import lora, vocabulary
from dfpo_jax.models.transformer import Transformer
from dfpo_jax.types import Array, ArrayTree, Rollout, Term, TrainState


def join_sequence(rollout: Rollout) -> tuple[Array, Array]:
    """Prompt and response as one sequence: tokens and validity, both [B, P + R].

    Validity covers every slot before the response's end, so that a masked gap inside a response
    (a tool turn) is still read by the model.
    """
    tokens = jnp.concatenate([rollout.prompt_tokens, rollout.tokens], axis=1)
    reached = jnp.cumsum(rollout.mask[:, ::-1], axis=1)[:, ::-1] > 0
    valid = jnp.concatenate([rollout.prompt_mask, reached.astype(jnp.float32)], axis=1)
    return tokens, valid


def response_states(
    model: Transformer, params: ArrayTree, sequence: Array, valid: Array, length: int
) -> Array:
    """Hidden states [B, R + 1, D] of s_0 .. s_R, where s_i predicts response token i.

    Of no meaning behind the response, and in s_0 where a row's prompt has no token.
    """
    hidden, _ = model.apply({"params": params}, sequence, valid)
    return hidden[:, -length - 1 :]


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
      params: its parameters, of which the output projection is read.
      states: [B, R + 1, D] hidden states.
      tokens: [B, R].
      temperature: divides the logits.
      chunk: time steps at once, see `vocabulary.token_statistics`.
    """
    kernel = params["embedding"] if model.config.tie_embeddings else params["head"].T
    states = states[:, :-1].astype(model.config.dtype)
    return vocabulary.token_statistics(states, kernel, tokens, temperature, chunk)


def successor_index(mask: Array) -> Array:
    """Index of the state after each token, skipping masked gaps: [B, R] int32 in [1, R].

    For the last valid token of a row this is the slot right after it; it is also what positions
    without a valid successor hold (R at most).
    """
    length = mask.shape[1]
    slots = jnp.arange(length)
    later = jnp.where(mask > 0, slots[None, :], length)
    after = jax.lax.cummin(later, axis=1, reverse=True)
    after = jnp.concatenate([after[:, 1:], jnp.full_like(after[:, :1], length)], axis=1)
    return jnp.where(after == length, slots[None, :] + 1, after)


def policy_losses(
    config: PolicyConfig, log_probs: Array, entropy: Array, batch: Batch, context: Context
) -> dict[str, Term]:
    """Clipped surrogate, KL and entropy as exact (sum, count) terms.

    Args:
      config: the policy side.
      log_probs: [B, R] live log-probabilities (differentiated).
      entropy: [B, R] live entropies (differentiated only when it has a coefficient).
      batch: old and reference log-probabilities, advantages, mask.
      context: KL weight and policy scale.
    """
    batch = jax.lax.stop_gradient(batch)
    weights, count = ops.aggregate_weights(batch.mask, config.aggregation)

    def term(per_token, weight):
        return Term(jnp.sum(per_token * weights), count, weight)

    surrogate = ops.ppo_clip(
        log_probs,
        batch.old_log_probs,
        batch.advantages,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        dual_clip=config.dual_clip or None,
    )
    clipped = ops.clip_fraction(
        log_probs,
        batch.old_log_probs,
        batch.advantages,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
    )
    if config.entropy_coefficient == 0.0:
        entropy = jax.lax.stop_gradient(entropy)
    entropy_weight = -config.entropy_coefficient * context.policy_scale
    terms = {
        "policy/loss": term(surrogate * batch.importance, context.policy_scale),
        "policy/entropy": term(entropy, entropy_weight),
        "policy/clip_fraction": term(clipped, 0.0),
        "policy/kl_old": term(ops.kl_estimate(log_probs, batch.old_log_probs, "k3"), 0.0),
    }
    if batch.ref_log_probs is not None:
        kl = ops.kl_estimate(log_probs, batch.ref_log_probs, config.kl_kind)
        in_loss = config.kl_in == "loss"
        weight = context.kl_coefficient * context.policy_scale if in_loss else 0.0
        terms["policy/kl"] = term(kl, weight)
    return terms


def policy_terms(
    config: PolicyConfig,
    model: Transformer,
    params: ArrayTree,
    batch: Batch,
    context: Context,
    temperature: float,
) -> tuple[Array, dict[str, Term]]:
    """Hidden states [B, R + 1, D] of the live policy, and its `policy_losses`."""
    policy, length = params["policy"], batch.tokens.shape[1]
    states = response_states(model, policy, batch.sequence, batch.valid, length)
    log_probs, entropy = token_statistics(
        model, policy, states, batch.tokens, temperature, config.logits_chunk
    )
    return states, policy_losses(config, log_probs, entropy, batch, context)


@struct.dataclass
class Frozen:
    """What every algorithm's `prepare` starts from.

    Attributes:
      sequence, valid: [B, P + R].
      states: [B, R + 1, D] of the frozen policy.
      mask: [B, R], overlong responses removed when asked for.
      old_log_probs, ref_log_probs, importance: as in `Batch`.
      rewards: [B, R] token rewards in normalised value units.
      bootstrap: [B] bool, the return continues after the last valid token.
    """

    sequence: Array
    valid: Array
    states: Array
    mask: Array
    old_log_probs: Array
    ref_log_probs: Array | None
    importance: Array
    rewards: Array
    bootstrap: Array

    def batch(
        self, config: PolicyConfig, rollout: Rollout, advantages: Array, critic: Any = None
    ) -> Batch:
        """The batch of this rollout with advantages [B, R], whitened if asked for."""
        return Batch(
            row=jnp.arange(len(rollout.tokens)),
            sequence=self.sequence,
            valid=self.valid,
            tokens=rollout.tokens,
            mask=self.mask,
            old_log_probs=self.old_log_probs,
            ref_log_probs=self.ref_log_probs,
            importance=self.importance,
            advantages=finish_advantages(config, advantages, self.mask),
            critic=critic,
        )


def clipped_rewards(config: PolicyConfig, rollout: Rollout) -> Array:
    """Sequence rewards [B] float32 within [-reward_clip, reward_clip], where there is a clip."""
    rewards, clip = jnp.asarray(rollout.rewards, jnp.float32), config.reward_clip
    return jnp.clip(rewards, -clip, clip) if clip > 0.0 else rewards


def normalise_rewards(
    rewards: Array, mask: Array, bootstrap: Array, shift: Array, scale: Array, discount: float
) -> Array:
    """Token rewards in value units z = (G - mu) / sigma (algorithm section 1).

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
    terminal = ops.last_valid(mask) * (1.0 - bootstrap[:, None].astype(jnp.float32))
    offset = jnp.where(terminal > 0, -shift, (discount - 1.0) * shift)
    return (rewards + offset) / scale * mask


def freeze(
    config: PolicyConfig,
    model: Transformer,
    state: TrainState,
    rollout: Rollout,
    temperature: float,
) -> Frozen:
    """Evaluate the frozen policy and reference on a rollout and shape its rewards."""
    sequence, valid = join_sequence(rollout)
    length = rollout.tokens.shape[1]
    policy = jax.tree.map(jax.lax.stop_gradient, state.params["policy"])
    states = response_states(model, policy, sequence, valid, length)
    old, reference = rollout.log_probs, None
    if config.recompute_log_probs:
        old, _ = token_statistics(
            model, policy, states, rollout.tokens, temperature, config.logits_chunk
        )
    mask, bootstrap = rollout.mask, jnp.zeros_like(rollout.truncated)
    if config.overlong == "mask":
        mask = mask * (1.0 - rollout.truncated[:, None].astype(jnp.float32))
    elif config.overlong == "bootstrap":
        bootstrap = rollout.truncated
    rewards = ops.place_at_last(clipped_rewards(config, rollout), mask)
    if config.kl_coefficient > 0.0:
        start = lora.join(state.reference, lora.split(policy)[1])
        ref_states = response_states(model, start, sequence, valid, length)
        reference, _ = token_statistics(
            model, start, ref_states, rollout.tokens, temperature, config.logits_chunk
        )
        if config.kl_in == "reward":
            kl = ops.kl_estimate(old, reference, config.kl_kind)
            rewards = rewards - state.kl_coefficient * kl * mask
    importance = jnp.ones_like(mask)
    if config.importance_cap > 0.0:
        importance = ops.truncated_importance_weights(
            old, rollout.log_probs, cap=config.importance_cap
        )
    rewards = normalise_rewards(
        rewards, mask, bootstrap, state.value_shift, state.value_scale, config.discount
    )
    return Frozen(sequence, valid, states, mask, old, reference, importance, rewards, bootstrap)


def policy_lambda(config: PolicyConfig, mask: Array) -> Array | float:
    """Lambda of the advantage estimate: a number, or [B] when it adapts to the length."""
    if config.length_adaptive_alpha == 0.0:
        return config.gae_lambda
    return ops.length_adaptive_lambda(mask.sum(axis=1), config.length_adaptive_alpha)


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


def finish_advantages(config: PolicyConfig, advantages: Array, mask: Array) -> Array:
    """Whiten if asked for; zero outside the mask."""
    if config.whiten:
        advantages = ops.masked_whiten(advantages, mask)
    return advantages * mask
