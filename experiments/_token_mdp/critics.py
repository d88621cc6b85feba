"""Critics of the token MDP: the library's own critics on a small trunk, trained and read."""

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
from dfpo_jax.critics import Critic, Flow, Quantile, Scalar
from dfpo_jax.critics.units import UNITS
from dfpo_jax.types import Array, Steps

WIDTH = 64
BATCH, REFRESH = 128, 10  # episodes per update; updates between two copies of the old critic


class Trunk(nn.Module):
    """The trunk every row has: two layers of WIDTH on the history."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., LENGTH * TOKENS] -> [..., WIDTH]."""
        for _ in range(2):
            x = jax.nn.silu(nn.Dense(WIDTH)(x))
        return x


@dataclasses.dataclass(frozen=True)
class Row:
    """One critic of the table.

    Attributes:
      critic: its settings, as in `config.critic`.
      rate: Adam's rate at the start; it decays to 0 along half a cosine. Chosen per family from
        factors of about 2: scalar .001-.032, quantile .001-.064, flow .004-.032.
      lambda_: lambda of the targets.
      normalise: value units (G - 1/2) / scale, or the reward itself.
      readings: names in `READINGS`; each gives a line of the table. () for a critic that is read in
        one way only.
      scale: of the value units.
      learns: what the critic learns in, "affine" or "asinh".
    """

    critic: Scalar | Quantile | Flow
    rate: float
    lambda_: float = 1.0
    normalise: bool = True
    readings: tuple[str, ...] = ()
    scale: float = 0.5
    learns: str = "affine"

    def build(self, settings: Scalar | Quantile | Flow) -> Critic:
        """The critic of these settings, the row's or those of one of its readings."""
        return settings.build(*([] if self.learns == "affine" else [UNITS[self.learns]]))

    @property
    def units(self) -> tuple[float, float]:
        """Centre and scale of the value units."""
        return (0.5, self.scale) if self.normalise else (0.0, 1.0)


# How a flow is read: settings of inference that replace the row's own.
_ODE = {"inference": "ode", "first_step": 1.0}
READINGS = {
    "midpoint 4": {"inference": "ode", "solver": "midpoint", "num_steps": 4},
    "one step": {"inference": "one_step"},
    "Euler 16": {**_ODE, "solver": "euler", "num_steps": 16},
    "Euler 10": {**_ODE, "solver": "euler", "num_steps": 10},
    "Euler 1 of the field": {**_ODE, "solver": "euler", "num_steps": 1},
}


def steps_of(rewards: Array) -> Steps:
    """Episodes of LENGTH tokens with rewards [B], in value units, after the last one."""
    rewards = jnp.zeros((len(rewards), LENGTH)).at[:, -1].set(rewards)
    return Steps(rewards, jnp.ones_like(rewards), jnp.zeros(len(rewards), bool))


def loss(critic: Critic, lambda_: float, params, old, x: Array, steps: Steps, key: Array) -> Array:
    """The critic's objective on features x [B, LENGTH + 1, F], a number."""
    target_key, loss_key = jax.random.split(key)
    reading = critic.read(old["head"], Trunk().apply(old["trunk"], x))
    rows = jax.lax.stop_gradient(critic.targets(target_key, reading, steps, lambda_))
    states = Trunk().apply(params["trunk"], x)
    keys = jax.random.split(loss_key, len(x))
    total = 0.0
    for part in critic.losses(params["head"], states, rows, old["head"], keys).values():
        mask = steps.mask if part.mask is None else part.mask
        total += part.weight * ops.masked_mean(part.per_token, mask)
    return total


def train(row: Row, updates: int, mdp: TokenMDP, key: Array):
    """Parameters after `updates` updates, each on BATCH fresh episodes."""
    critic, (centre, scale) = row.build(row.critic), row.units
    trunk_key, head_key = jax.random.split(key)
    empty = jnp.zeros((1, LENGTH * TOKENS))
    trunk, head = Trunk().init(trunk_key, empty), nn.unbox(critic.init(head_key, WIDTH))
    params = {"trunk": trunk, "head": head}
    optimizer = optax.adam(optax.cosine_decay_schedule(row.rate, updates))

    def update(carry, step):
        params, old, moments = carry
        old = jax.tree.map(lambda new, x: jnp.where(step % REFRESH, x, new), params, old)
        episode_key, loss_key = jax.random.split(jax.random.fold_in(key, step))
        tokens, rewards = sample_episodes(mdp, episode_key, BATCH)
        inputs = (old, features(tokens), steps_of((rewards - centre) / scale), loss_key)
        grads = jax.grad(lambda p: loss(critic, row.lambda_, p, *inputs))(params)
        changes, moments = optimizer.update(grads, moments)
        return (optax.apply_updates(params, changes), old, moments), None

    start = (params, params, optimizer.init(params))
    return jax.lax.scan(update, start, jnp.arange(updates))[0][0]


def read(row: Row, params, tokens: Array, depth: Array) -> dict[str, tuple[Array, Array]]:
    """Reading -> sorted quantiles [N, QUANTILES] and [N, FINE], in reward units."""
    centre, scale = row.units
    x = features(tokens)[jnp.arange(len(depth)), depth]
    states = Trunk().apply(params["trunk"], x)[None]

    def quantiles(settings, num):
        if isinstance(settings, Flow):
            settings = dataclasses.replace(settings, num_quantiles=num)
        critic = row.build(settings)
        law = critic.law(critic.read(params["head"], states))[0] * scale + centre
        return jnp.repeat(law, num // law.shape[-1], axis=-1)

    readings = {name: dataclasses.replace(row.critic, **READINGS[name]) for name in row.readings}
    readings = readings or {"": row.critic}
    return {
        name: tuple(quantiles(settings, num) for num in (QUANTILES, FINE))
        for name, settings in readings.items()
    }


def evaluations(reading: str) -> int:
    """Network evaluations per sample at inference."""
    how = READINGS.get(reading, {"inference": "one_step"})
    if how["inference"] == "one_step":
        return 1
    return how["num_steps"] * len(ops.SOLVERS[how["solver"]].b)


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
