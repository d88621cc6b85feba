"""Critics of the token MDP: one trunk under three heads, their losses, training and reading."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _token_mdp.mdp import (
    FINE,
    LENGTH,
    QUANTILES,
    TOKENS,
    TokenMDP,
    Truth,
    features,
    mixture_cdf,
    sample_episodes,
)

from dfpo_jax import ops
from dfpo_jax.algorithms import flow_critic
from dfpo_jax.algorithms.flow_critic import FlowCriticConfig
from dfpo_jax.models import QuantileHead, ScalarHead, ValueFlow, ValueFlowConfig, value_flow
from dfpo_jax.types import Array

WIDTH = 64
BATCH, REFRESH = 128, 10  # episodes per update; updates between two freezes of the critic


class Critic(nn.Module):
    """The trunk every row has, two layers of WIDTH on the history, under a head."""

    head: nn.Module

    def setup(self):
        """Names the layers."""
        self.trunk = [nn.Dense(WIDTH) for _ in range(2)]

    def encode(self, x: Array) -> Array:
        """[..., LENGTH * TOKENS] -> [..., WIDTH]."""
        for layer in self.trunk:
            x = jax.nn.silu(layer(x))
        return x

    def __call__(self, x: Array) -> Array:
        """Outputs of a scalar or quantile head."""
        return self.head(self.encode(x))

    def condition(self, x: Array) -> Array:
        """Condition of a flow head."""
        return self.head.condition(self.encode(x))

    def start(self, x: Array) -> Array:
        """One pass through every parameter of a flow head."""
        return self.head(self.encode(x), jnp.zeros((*x.shape[:-1], 1)), 0.0, 0.0)

    def velocity(self, condition: Array, z: Array, t: Array, d: Array) -> Array:
        """Field of a flow head."""
        return self.head.velocity(condition, z, t, d)


@dataclasses.dataclass(frozen=True)
class Row:
    """One critic of the table.

    Attributes:
      head: "scalar", "quantile" or "flow".
      rate: Adam's rate at the start; it decays to 0 along half a cosine. Chosen per family from
        factors of about 2: scalar .001-.032, quantile .001-.064, flow .004-.032.
      critic_lambda: lambda of the targets.
      flow: losses of a flow; its target mode also serves quantile heads.
      kappa: Huber threshold of quantile regression, normalised; the best of 0, .05, .2 and 1.
      normalise: value units (G - 1/2) / (1/2), or the reward itself.
      readings: names in `READINGS`; each gives a line of the table.
    """

    head: str
    rate: float
    critic_lambda: float = 1.0
    flow: FlowCriticConfig = FlowCriticConfig()
    kappa: float = 0.0
    normalise: bool = True
    readings: tuple[str, ...] = ()

    @property
    def units(self) -> tuple[float, float]:
        """Centre and scale of the value units."""
        return (0.5, 0.5) if self.normalise else (0.0, 1.0)


# Solver and steps by which a flow is read (None: the flow map).
READINGS = {
    "midpoint 4": ("midpoint", 4),
    "one step": None,
    "Euler 16": ("euler", 16),
    "Euler 10": ("euler", 10),
    "Euler 1 of the field": ("euler", 1),
}


def make_critic(row: Row) -> Critic:
    """The row's network."""
    if row.head == "flow":
        return Critic(ValueFlow(ValueFlowConfig(num_blocks=1)))
    return Critic(ScalarHead() if row.head == "scalar" else QuantileHead(QUANTILES))


def direct_loss(row: Row, critic: Critic, params, frozen, x, rewards, key) -> Array:
    """Loss of a scalar or quantile head on features x [B, LENGTH + 1, F], a number."""
    mask = jnp.ones_like(rewards)
    old = jax.lax.stop_gradient(critic.apply(frozen, x))
    new = critic.apply(params, x[:, :-1])
    if row.head == "scalar":
        _, returns = ops.gae(rewards, old[:, :-1], mask, lambda_=row.critic_lambda)
        return jnp.mean(jnp.square(new - jax.lax.stop_gradient(returns)))
    old = jnp.sort(old, axis=-1)
    if row.flow.target_mode == "average":
        targets = ops.lambda_average(rewards, old[:, :-1], mask, lambda_=row.critic_lambda)
    elif row.critic_lambda == 1.0:  # the return itself, once
        targets = ops.lambda_mixture(key, rewards, old[:, 1:, :1], mask, lambda_=1.0)
    else:
        targets = ops.lambda_mixture(key, rewards, old[:, 1:], mask, lambda_=row.critic_lambda)
    return jnp.mean(ops.quantile_huber(new, targets, ops.quantile_levels(QUANTILES), row.kappa))


def velocity_of(critic: Critic, params, condition: Array) -> value_flow.Velocity:
    """The field at the states of `condition`."""
    return lambda z, t, d: critic.apply(params, condition, z, t, d, method="velocity")


def flow_loss(row: Row, critic: Critic, params, frozen, x, rewards, key) -> Array:
    """DFPO's critic loss on features x [B, LENGTH + 1, F], a number."""
    target_key, loss_key = jax.random.split(key)
    mask = jnp.ones_like(rewards)
    old = critic.apply(frozen, x, method="condition")
    now, after = (velocity_of(critic, frozen, c) for c in (old[:, :-1], old[:, 1:]))
    live = velocity_of(critic, params, critic.apply(params, x[:, :-1], method="condition"))
    samples = flow_critic.return_targets(
        row.flow,
        target_key,
        now,
        after,
        rewards,
        mask,
        discount=1.0,
        critic_lambda=row.critic_lambda,
        bootstrap=jnp.zeros(len(rewards), bool),
    )
    losses = flow_critic.flow_losses(
        row.flow, loss_key, live, now, after, samples, rewards, discount=1.0
    )
    weight = 1.0
    if row.flow.uncertainty != "none":
        weight = ops.uncertainty_weights(
            flow_critic.spread(row.flow, now, rewards.shape),
            mode=row.flow.uncertainty,
            temperature=row.flow.uncertainty_temperature,
        )
    total = 0.0
    for name, loss in losses.items():
        loss = loss * weight if name in ("anchor", "dcfm") else loss
        loss = loss[:, :-1] if name == "dcfm" else loss  # the last token has no successor
        total += flow_critic.loss_weight(row.flow, name) * jnp.mean(loss)
    return total


def train(row: Row, updates: int, mdp: TokenMDP, key: Array):
    """Parameters after `updates` updates, each on BATCH fresh episodes."""
    critic = make_critic(row)
    centre, scale = row.units
    loss = flow_loss if row.head == "flow" else direct_loss
    empty = jnp.zeros((1, LENGTH * TOKENS))
    params = nn.unbox(critic.init(key, empty, method="start" if row.head == "flow" else None))
    optimizer = optax.adam(optax.cosine_decay_schedule(row.rate, updates))

    def update(carry, step):
        params, frozen, moments = carry
        frozen = jax.tree.map(lambda new, old: jnp.where(step % REFRESH, old, new), params, frozen)
        episode_key, loss_key = jax.random.split(jax.random.fold_in(key, step))
        tokens, rewards = sample_episodes(mdp, episode_key, BATCH)
        rewards = jnp.zeros((BATCH, LENGTH)).at[:, -1].set((rewards - centre) / scale)
        x = features(tokens)
        grads = jax.grad(lambda p: loss(row, critic, p, frozen, x, rewards, loss_key))(params)
        changes, moments = optimizer.update(grads, moments)
        return (optax.apply_updates(params, changes), frozen, moments), None

    start = (params, params, optimizer.init(params))
    return jax.lax.scan(update, start, jnp.arange(updates))[0][0]


def read(row: Row, params, tokens: Array, depth: Array) -> dict[str, tuple[Array, Array]]:
    """Reading -> sorted quantiles [N, QUANTILES] and [N, FINE], in reward units."""
    critic = make_critic(row)
    centre, scale = row.units
    x = features(tokens)[jnp.arange(len(depth)), depth]
    if row.head != "flow":
        q = critic.apply(params, x).reshape(len(depth), -1) * scale + centre
        q = jnp.sort(q, axis=-1)
        return {"": tuple(jnp.repeat(q, m // q.shape[-1], axis=-1) for m in (QUANTILES, FINE))}
    velocity = velocity_of(critic, params, critic.apply(params, x, method="condition"))

    def quantiles(reading, num):
        noise = value_flow.noise_grid((len(depth),), num)
        if READINGS[reading] is None:
            z = value_flow.one_step(velocity, noise)
        else:
            solver, steps = READINGS[reading]
            first = row.flow.first_step if reading == "midpoint 4" else 1.0
            z = value_flow.samples(
                velocity, noise, num_steps=steps, solver=solver, first_step=first
            )
        return jnp.sort(z, axis=-1) * scale + centre

    return {name: tuple(quantiles(name, m) for m in (QUANTILES, FINE)) for name in row.readings}


def evaluations(reading: str) -> int:
    """Network evaluations per sample at inference."""
    if READINGS.get(reading) is None:
        return 1
    solver, steps = READINGS[reading]
    return steps * len(ops.SOLVERS[solver].b)


def score(q: np.ndarray, fine: np.ndarray, truth: Truth, noise: float) -> dict[str, float]:
    """The table's figures for one seed, averaged over states."""
    levels = (np.arange(QUANTILES) + 0.5) / QUANTILES
    low, high = (np.array([np.interp(u, levels, row) for row in q]) for u in (0.05, 0.95))
    mass = mixture_cdf(high, truth.weight, noise) - mixture_cdf(low, truth.weight, noise)
    return {
        "w1_32": float(np.abs(q - truth.quantiles).mean()),
        "w1": float(np.abs(fine - truth.fine).mean()),
        "mean": float(np.abs(q.mean(-1) - truth.weight).mean()),
        "cvar": float(np.abs(np.asarray(ops.cvar(jnp.asarray(q), 0.1)) - truth.cvar).mean()),
        "coverage": float(mass.mean()),
    }
