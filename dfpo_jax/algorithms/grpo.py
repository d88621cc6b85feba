"""GRPO, Dr. GRPO and RLOO: no critic; a response is compared with the others to its prompt."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from dfpo_jax import ops
from dfpo_jax.algorithms.base import Algorithm, Context, PolicyConfig, check_choice
from dfpo_jax.algorithms.policy import clipped_rewards, freeze, policy_terms
from dfpo_jax.models.transformer import Transformer


@dataclass(frozen=True)
class GroupConfig:
    """What a response is compared with.

    Attributes:
      baseline: "mean", that of the whole group, or "leave_one_out", that of the others in it (RLOO,
        arXiv 2402.14740).
      normalize: whether the difference is divided by the group's deviation (GRPO, arXiv 2402.03300,
        section 4.1) or not (Dr. GRPO, arXiv 2503.20783, section 3). Only with "mean".

    Raises:
      ValueError: another baseline, or one that is not normalised.
    """

    baseline: str = "mean"
    normalize: bool = True

    def __post_init__(self):
        """Check names."""
        check_choice(self, "baseline", ("mean", "leave_one_out"))
        if self.normalize and self.baseline != "mean":
            raise ValueError(
                f"baseline is {self.baseline!r} and normalize True; only 'mean' is normalised"
            )


@dataclass(frozen=True)
class GRPOConfig:
    """GRPO's settings.

    Attributes:
      policy: the policy side; GRPO as published has `whiten` False, `aggregation` "sequence_mean"
        and a `kl_coefficient`.
      group: what a response is compared with.
      group_size: responses per prompt, those of one prompt consecutive.

    Raises:
      ValueError: a setting that needs a critic or a return of every token.
    """

    policy: PolicyConfig = field(default_factory=PolicyConfig)
    group: GroupConfig = field(default_factory=GroupConfig)
    group_size: int = 8

    def __post_init__(self):
        """Check ranges."""
        if self.group_size < 2:
            raise ValueError(
                f"train.samples is {self.group_size}; grpo compares responses to the same prompt, "
                "so it must be at least 2"
            )
        for name, allowed in (("advantage", ("gae",)), ("overlong", ("terminal", "mask"))):
            value = getattr(self.policy, name)
            if value not in allowed:
                raise ValueError(
                    f"policy.{name} is {value!r}; without a critic grpo allows "
                    f"{' and '.join(allowed)}"
                )
        if self.policy.discount != 1.0:
            raise ValueError(
                f"policy.discount is {self.policy.discount}; grpo's advantage is that of the whole "
                "response, so it must be 1.0"
            )
        if self.policy.kl_coefficient > 0.0 and self.policy.kl_in == "reward":
            raise ValueError("policy.kl_in is 'reward'; grpo's KL is in the loss, so it must be so")


def grpo(model: Transformer, config: GRPOConfig, temperature: float) -> Algorithm:
    """Group-relative policy optimization: PPO's clipped step on advantages within groups.

    Every token of response k has the advantage A_k = (r_k - mean(r)) / (std(r) + 1e-6) over the
    responses to its prompt, or what `config.group` makes of it.

    Args:
      model: the policy.
      config: settings.
      temperature: the sampler's temperature, at which log-probabilities are taken.
    """

    def init(key, policy_params):
        del key
        return {"policy": policy_params}

    def prepare(state, rollout, key):
        del key
        frozen = freeze(config.policy, model, state, rollout, temperature)
        rewards = clipped_rewards(config.policy, rollout)
        if config.group.baseline == "mean":
            relative = ops.group_relative(
                rewards, config.group_size, normalize=config.group.normalize
            )
        else:
            relative = ops.rloo(rewards, config.group_size)
        advantages = relative[:, None] * frozen.mask
        batch = frozen.batch(config.policy, rollout, advantages)
        return batch, Context(jnp.copy(state.kl_coefficient), jnp.float32(1.0))

    def loss(params, batch, context, key):
        del key
        batch, context = jax.lax.stop_gradient((batch, context))
        return policy_terms(config.policy, model, params, batch, context, temperature)[1]

    return Algorithm(init, prepare, loss)
