"""PPO with a scalar critic (arXiv 1707.06347; token-level, as in arXiv 2203.02155)."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from flax import struct

from dfpo_jax import ops
from dfpo_jax.algorithms.base import Algorithm, Context, PolicyConfig, check_interval
from dfpo_jax.algorithms.critic import CriticConfig, critic_states, init_critic, policy_scale
from dfpo_jax.algorithms.policy import (
    final_values,
    freeze,
    join_sequence,
    policy_lambda,
    policy_terms,
    response_states,
)
from dfpo_jax.models.transformer import Transformer
from dfpo_jax.models.value_heads import ScalarHead
from dfpo_jax.types import Array, Term


@dataclass(frozen=True)
class PPOConfig:
    """PPO's settings.

    Attributes:
      policy: the policy side.
      critic: trunk, lambda, warm-up.
      value_clip: 0, or the largest move of a value from its old one that the loss rewards, in
        normalised units.

    Raises:
      ValueError: a value outside its range, or an advantage that needs a distribution.
    """

    policy: PolicyConfig = field(default_factory=PolicyConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    value_clip: float = 0.0

    def __post_init__(self):
        """Check ranges."""
        check_interval(self, "value_clip", low=0.0)
        if self.policy.advantage != "gae":
            raise ValueError(
                f"policy.advantage is {self.policy.advantage!r}; PPO's scalar critic allows gae"
            )


@struct.dataclass
class ScalarTargets:
    """Critic targets of PPO: `returns` and `old_values`, both [B, R], normalised units."""

    returns: Array
    old_values: Array


def ppo(model: Transformer, config: PPOConfig, temperature: float) -> Algorithm:
    """PPO with a learned scalar critic.

    Args:
      model: the policy, and the shape of the critic's trunk.
      config: settings.
      temperature: the sampler's temperature, at which log-probabilities are taken.
    """
    head = ScalarHead()

    def values_of(params, policy_states, sequence, valid, length):
        states = critic_states(config.critic, model, params, policy_states, sequence, valid, length)
        return head.apply({"params": params["critic"]["head"]}, states)

    def init(key, policy_params):
        features = jnp.zeros((1, model.config.d_model))
        head_params = head.init(key, features)["params"]
        return {
            "policy": policy_params,
            "critic": init_critic(config.critic, policy_params, head_params),
        }

    def prepare(state, rollout, key):
        del key
        frozen = freeze(config.policy, model, state, rollout, temperature)
        values = values_of(
            state.params,
            frozen.states,
            frozen.sequence,
            frozen.valid,
            rollout.tokens.shape[1],
        )
        last = final_values(values, frozen.mask, frozen.bootstrap)
        advantages, _ = ops.gae(
            frozen.rewards,
            values[:, :-1],
            frozen.mask,
            discount=config.policy.discount,
            lambda_=policy_lambda(config.policy, frozen.mask),
            final_values=last,
        )
        _, returns = ops.gae(
            frozen.rewards,
            values[:, :-1],
            frozen.mask,
            discount=config.policy.discount,
            lambda_=config.critic.critic_lambda,
            final_values=last,
        )
        targets = ScalarTargets(returns, values[:, :-1])
        batch = frozen.batch(config.policy, rollout, advantages, targets)
        scale = policy_scale(state.step, config.critic.warmup)
        return batch, Context(jnp.copy(state.kl_coefficient), scale)

    def loss(params, batch, context, key):
        del key
        batch, context = jax.lax.stop_gradient((batch, context))
        states, terms = policy_terms(config.policy, model, params, batch, context, temperature)
        values = values_of(params, states, batch.sequence, batch.valid, batch.tokens.shape[1])[
            :, :-1
        ]
        old, returns = batch.critic.old_values, batch.critic.returns
        errors = jnp.square(values - returns)
        if config.value_clip > 0.0:
            moved = old + jnp.clip(values - old, -config.value_clip, config.value_clip)
            errors = jnp.maximum(errors, jnp.square(moved - returns))
        total, count = ops.masked_sum_and_count(0.5 * errors, batch.mask)
        terms["critic/loss"] = Term(total, count, config.critic.loss_weight)
        return terms

    def predict(state, rollout):
        params, length = state.params, rollout.tokens.shape[1]
        sequence, valid = join_sequence(rollout)
        states = None
        if config.critic.trunk != "own":
            states = response_states(model, params["policy"], sequence, valid, length)
        values = values_of(params, states, sequence, valid, length)
        return (values[:, :-1] * state.value_scale + state.value_shift)[..., None]

    return Algorithm(init, prepare, loss, predict)
