"""DFPO: PPO's policy step on a critic that learns the return's distribution as a flow.

Distributional Value Flow Policy Optimization, arXiv 2602.05890. The named components are the
paper's; their equations are a reconstruction (see the README).
"""

import dataclasses
import math
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from flax import struct

from dfpo_jax import ops
from dfpo_jax.algorithms import flow_critic
from dfpo_jax.algorithms.base import (
    Algorithm,
    Context,
    PolicyConfig,
    check_choice,
    check_interval,
)
from dfpo_jax.algorithms.critic import CriticConfig, critic_states, init_critic, policy_scale
from dfpo_jax.algorithms.flow_critic import FlowCriticConfig
from dfpo_jax.algorithms.policy import (
    final_values,
    freeze,
    join_sequence,
    policy_lambda,
    policy_terms,
    response_states,
    successor_index,
)
from dfpo_jax.models import value_flow
from dfpo_jax.models.transformer import Transformer
from dfpo_jax.models.value_flow import ValueFlow, ValueFlowConfig
from dfpo_jax.types import Array, Term

RISK_MEASURES = ("mean", "cvar", "mean_cvar", "wang")


@dataclass(frozen=True)
class RiskConfig:
    """How a distribution becomes the value of a state.

    Attributes:
      measure: rho(Z): "mean", "cvar", "mean_cvar" or "wang".
      alpha: tail mass of the CVaR.
      eta: weight of the CVaR in "mean_cvar".
      wang_shift: shift of "wang", see `ops.risk_value`; above 0 averse to risk, below 0 seeking it.

    Raises:
      ValueError: a value outside its range, named with what is allowed.
    """

    measure: str = "mean"
    alpha: float = 0.1
    eta: float = 0.5
    wang_shift: float = 0.75

    def __post_init__(self):
        """Check ranges and names."""
        check_choice(self, "measure", RISK_MEASURES)
        check_interval(self, "alpha", "eta", low=0.0, high=1.0)
        if self.alpha == 0.0:
            raise ValueError("alpha is 0.0; it must lie in (0, 1]")
        if not math.isfinite(self.wang_shift):
            raise ValueError(f"wang_shift is {self.wang_shift}; it must be finite")


@dataclass(frozen=True)
class DFPOConfig:
    """DFPO's settings.

    Attributes:
      policy: the policy side.
      critic: trunk, lambda, warm-up.
      flow: the critic's losses and inference.
      head: sizes of the velocity network.
      risk: how a distribution becomes the value of a state.
    """

    policy: PolicyConfig = field(default_factory=PolicyConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    flow: FlowCriticConfig = field(default_factory=FlowCriticConfig)
    head: ValueFlowConfig = field(default_factory=ValueFlowConfig)
    risk: RiskConfig = field(default_factory=RiskConfig)


@struct.dataclass
class FlowTargets:
    """What DFPO's critic loss needs per token.

    Attributes:
      samples: [B, R, S] return samples, normalised units.
      rewards: [B, R] normalised token rewards.
      condition: [B, R + 1, C] the frozen critic's condition at s_0 .. s_R.
      successor: [B, R] index of the state after each token.
      has_successor: [B, R] 1 where that state has a return of its own.
      weight: [B, R] uncertainty weight of the flow-matching losses.
    """

    samples: Array
    rewards: Array
    condition: Array
    successor: Array
    has_successor: Array
    weight: Array


def advantages(config: DFPOConfig, frozen, quantiles: Array, samples: Array) -> Array:
    """Advantages [B, R] of algorithm section 6, before whitening.

    Args:
      config: which advantage and risk measure.
      frozen: rewards, mask and bootstrap flags of the rollout.
      quantiles: [B, R + 1, M] the frozen critic's quantiles at s_0 .. s_R.
      samples: [B, R, S] return samples at the policy's lambda (read by "rank").

    Returns:
      "gae": GAE on rho(Z). "sigma": the same divided by std Z(s_i) + floor. "rank": the mean over
      samples G of 2 F_{Z(s_i)}(G) - 1. "sigma" and "rank" are ours.
    """
    policy, current = config.policy, quantiles[:, :-1]
    if policy.advantage == "rank":
        points = jnp.broadcast_to(current[:, :, None], (*samples.shape, current.shape[-1]))
        return jnp.mean(2.0 * ops.cdf(points, samples) - 1.0, axis=-1)
    values = ops.risk_value(quantiles, **dataclasses.asdict(config.risk))
    result, _ = ops.gae(
        frozen.rewards,
        values[:, :-1],
        frozen.mask,
        discount=policy.discount,
        lambda_=policy_lambda(policy, frozen.mask),
        final_values=final_values(values, frozen.mask, frozen.bootstrap),
    )
    if policy.advantage == "sigma":
        result = result / (jnp.std(current, axis=-1) + policy.sigma_floor)
    return result


def _take(condition: Array, index: Array) -> Array:
    """Rows of [B, R + 1, C] at [B, R] indices."""
    return jnp.take_along_axis(condition, index[..., None], axis=1)


def dfpo(model: Transformer, config: DFPOConfig, temperature: float) -> Algorithm:
    """DFPO with a value-flow critic.

    Args:
      model: the policy, and the shape of the critic's trunk.
      config: settings.
      temperature: the sampler's temperature, at which log-probabilities are taken.
    """
    head = ValueFlow(config.head)
    flow = config.flow

    def condition_of(params, policy_states, sequence, valid, length):
        states = critic_states(config.critic, model, params, policy_states, sequence, valid, length)
        return head.apply({"params": params["critic"]["head"]}, states, method="condition")

    def velocity_at(head_params, condition):
        return lambda z, t, d: head.apply(
            {"params": head_params}, condition, z, t, d, method="velocity"
        )

    def init(key, policy_params):
        features = jnp.zeros((1, 1, model.config.d_model))
        head_params = head.init(key, features, jnp.zeros((1, 1, 1)), 0.0, 0.0)["params"]
        return {
            "policy": policy_params,
            "critic": init_critic(config.critic, policy_params, head_params),
        }

    def targets_of(key, lambda_, frozen, now, after):
        return flow_critic.return_targets(
            flow,
            key,
            now,
            after,
            frozen.rewards,
            frozen.mask,
            discount=config.policy.discount,
            critic_lambda=lambda_,
            bootstrap=frozen.bootstrap,
        )

    def prepare(state, rollout, key):
        critic_key, policy_key = jax.random.split(key)
        frozen = freeze(config.policy, model, state, rollout, temperature)
        critic_head = state.params["critic"]["head"]
        length = rollout.tokens.shape[1]
        condition = condition_of(state.params, frozen.states, frozen.sequence, frozen.valid, length)
        successor = successor_index(frozen.mask)
        now = velocity_at(critic_head, condition[:, :-1])
        after = velocity_at(critic_head, _take(condition, successor))
        everywhere = velocity_at(critic_head, condition)
        quantiles = flow_critic.state_quantiles(flow, everywhere, condition.shape[:2])
        samples = targets_of(critic_key, config.critic.critic_lambda, frozen, now, after)
        policy_samples = samples
        if config.policy.advantage == "rank":
            lambda_ = policy_lambda(config.policy, frozen.mask)
            policy_samples = targets_of(policy_key, lambda_, frozen, now, after)
        result = advantages(config, frozen, quantiles, policy_samples)
        weight = jnp.ones_like(frozen.mask)
        if flow.uncertainty != "none":
            weight = ops.uncertainty_weights(
                flow_critic.spread(flow, now, frozen.mask.shape),
                mode=flow.uncertainty,
                temperature=flow.uncertainty_temperature,
            )
        last = ops.last_valid(frozen.mask) * (1.0 - frozen.bootstrap[:, None])
        batch = frozen.batch(
            config.policy,
            rollout,
            result,
            FlowTargets(
                samples=samples,
                rewards=frozen.rewards,
                condition=condition,
                successor=successor,
                has_successor=frozen.mask * (1.0 - last),
                weight=weight,
            ),
        )
        context = Context(
            kl_coefficient=jnp.copy(state.kl_coefficient),
            policy_scale=policy_scale(state.step, config.critic.warmup),
            frozen=jax.tree.map(jnp.copy, critic_head),
        )
        return batch, context

    def critic_terms(params, states, batch, context, key):
        targets, length = batch.critic, batch.tokens.shape[1]
        condition = condition_of(params, states, batch.sequence, batch.valid, length)
        after = _take(targets.condition, targets.successor)
        losses = flow_critic.flow_losses(
            flow,
            jax.vmap(jax.random.fold_in, (None, 0))(key, batch.row),
            velocity_at(params["critic"]["head"], condition[:, :-1]),
            velocity_at(context.frozen, targets.condition[:, :-1]),
            velocity_at(context.frozen, after),
            targets.samples,
            targets.rewards,
            discount=config.policy.discount,
        )
        terms = {}
        for name, per_token in losses.items():
            if name in ("anchor", "dcfm"):
                per_token = per_token * targets.weight
            mask = targets.has_successor if name == "dcfm" else batch.mask
            total, count = ops.masked_sum_and_count(per_token, mask)
            weight = config.critic.loss_weight * flow_critic.loss_weight(flow, name)
            terms[f"critic/{name}"] = Term(total, count, weight)
        return terms

    def loss(params, batch, context, key):
        batch, context = jax.lax.stop_gradient((batch, context))
        states, terms = policy_terms(config.policy, model, params, batch, context, temperature)
        return terms | critic_terms(params, states, batch, context, key)

    def read_critic(state, rollout):
        params, length = state.params, rollout.tokens.shape[1]
        sequence, valid = join_sequence(rollout)
        states = None
        if config.critic.trunk != "own":
            states = response_states(model, params["policy"], sequence, valid, length)
        return condition_of(params, states, sequence, valid, length)[:, :-1]

    def predict(state, rollout):
        condition = read_critic(state, rollout)
        velocity = velocity_at(state.params["critic"]["head"], condition)
        quantiles = flow_critic.state_quantiles(flow, velocity, condition.shape[:2])
        return quantiles * state.value_scale + state.value_shift

    def trajectories(state, rollout):
        condition = read_critic(state, rollout)[:, :1]
        velocity = velocity_at(state.params["critic"]["head"], condition)
        grid = value_flow.noise_grid(condition.shape[:2], flow.num_quantiles)
        return ops.trajectory(
            lambda z, t: velocity(z, t, 0.0), grid, num_steps=16, solver=flow.solver
        )[:, :, 0]

    return Algorithm(init, prepare, loss, predict, trajectories)
