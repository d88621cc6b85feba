"""PPO and DFPO on the ragged rows: configurations, each compiled once, that several files test."""

import dataclasses
import functools

import jax
import numpy as np
import tiny
from reference_policy import state_tokens, valid_slots
from tiny import Markov, ragged_rollout

from dfpo_jax import ops
from dfpo_jax.algorithms.base import PolicyConfig
from dfpo_jax.algorithms.critic import TRUNKS, CriticConfig
from dfpo_jax.algorithms.dfpo import DFPOConfig, RiskConfig, dfpo
from dfpo_jax.algorithms.flow_critic import FlowCriticConfig
from dfpo_jax.algorithms.ppo import PPOConfig, ppo
from dfpo_jax.models import ValueFlow

KEY = jax.random.key(5)
TEMPERATURE = 0.8
# Every policy term is on.
POLICY = {
    "kl_coefficient": 0.1,
    "entropy_coefficient": 0.01,
    "importance_cap": 2.0,
    "aggregation": "sequence_mean",
}
LIGHT = FlowCriticConfig(num_samples=4, num_steps=2, num_quantiles=5)
INTEGRATED = FlowCriticConfig(
    num_samples=1000,
    num_steps=16,
    first_step=1.0,
    solver="euler",
    num_quantiles=5,
    inference="ode",
    uncertainty="discount",
    uncertainty_temperature=0.5,
)
# Few configurations of DFPO that cover the options between them.
CASES = {
    # Every loss and policy term.
    "own": {**POLICY, "overlong": "bootstrap", "flow": tiny.FLOW, "discount": 0.9},
    "shared": {
        **POLICY,
        "measure": "cvar",
        "critic_lambda": 1.0,
        "discount": 0.9,
        "whiten": False,
    },
    "detached": {
        **POLICY,
        "measure": "mean_cvar",
        "overlong": "bootstrap",
        "flow": INTEGRATED,
        "critic_lambda": 0.0,
        "discount": 0.9,
    },
    "average": {
        "advantage": "sigma",
        "sigma_floor": 0.2,
        "overlong": "bootstrap",
        "flow": dataclasses.replace(LIGHT, target_mode="average"),
        "discount": 0.9,
    },
    # A lambda that adapts to 1: returns as observed.
    "rank": {
        "advantage": "rank",
        "overlong": "mask",
        "whiten": False,
        "length_adaptive_alpha": 1e9,
        "discount": 0.9,
    },
    # The policy's lambda is not the critic's.
    "rank_at_zero": {
        "advantage": "rank",
        "overlong": "bootstrap",
        "whiten": False,
        "gae_lambda": 0.0,
        "critic_lambda": 1.0,
        "flow": dataclasses.replace(LIGHT, num_samples=500),
        "discount": 0.9,
    },
}


class Case:
    """An algorithm on the ragged rows: state, batch, and jitted losses with gradients."""

    def __init__(self, config, algorithm):
        self.config, self.algorithm = config, algorithm
        self.rollout = ragged_rollout()
        self.state = tiny.make_state(self.algorithm, step=3)
        self.prepare = jax.jit(self.algorithm.prepare)
        self.batch, self.context = self.prepare(self.state, self.rollout, KEY)
        self.losses = tiny.evaluator(self.algorithm)
        # Parameters other than the frozen ones.
        self.moved = tiny.randomised(self.state.params, seed=8, scale=0.1)

    def run(self, params=None, batch=None, context=None):
        return self.losses(
            self.state.params if params is None else params,
            self.batch if batch is None else batch,
            self.context if context is None else context,
            KEY,
        )


class FlowCase(Case):
    """One of DFPO, and what its flow makes of noise."""

    def __init__(self, name):
        options = {"flow": LIGHT, "measure": "mean", "critic_lambda": 0.8, "gae_lambda": 0.9}
        options |= CASES[name]
        trunk = name if name in TRUNKS else "own"
        self.measure, self.critic_lambda = options.pop("measure"), options.pop("critic_lambda")
        config = DFPOConfig(
            flow=options.pop("flow"),
            policy=PolicyConfig(**options),
            critic=CriticConfig(trunk, self.critic_lambda, warmup=3, loss_weight=0.7),
            head=tiny.HEAD,
            risk=RiskConfig(self.measure, alpha=0.3, eta=0.4),
        )
        super().__init__(config, dfpo(Markov(), config, TEMPERATURE))

    def conditions(self, params):
        """[V, C] what the head makes of each token as a state."""
        own = self.config.critic.trunk == "own"
        trunk = params["critic"]["trunk"] if own else params["policy"]
        variables = {"params": params["critic"]["head"]}
        condition = ValueFlow(tiny.HEAD).apply(variables, trunk["embedding"], method="condition")
        return np.asarray(condition)

    def table(self, noise):
        """[V, S] what the flow makes of noise [S] in the state of each token, by Euler steps."""
        flow, head = self.config.flow, ValueFlow(tiny.HEAD)
        condition = self.conditions(self.state.params)
        params = {"params": self.state.params["critic"]["head"]}

        def velocity(z, t, d):
            return np.asarray(head.apply(params, condition, z, t, d, method="velocity"), float)

        z = np.broadcast_to(np.asarray(noise, np.float32), (tiny.VOCAB, len(noise)))
        if flow.inference == "one_step":
            return z + velocity(z, 0.0, 1.0)
        widths = np.array([flow.first_step] + [1.0] * (flow.num_steps - 1))
        widths, begin = widths / widths.sum(), 0.0
        for width in widths:
            z, begin = z + velocity(z, begin, 0.0) * width, begin + width
        return z

    def quantiles(self):
        """[B, R + 1, M] sorted quantiles at s_0 .. s_R."""
        grid = np.asarray(ops.noise_quantiles(self.config.flow.num_quantiles))
        return np.sort(self.table(grid), axis=-1)[state_tokens(self.rollout)]

    def successors(self):
        """[B, R] index of the state after each token, which skips gaps."""
        out = np.zeros(self.rollout.mask.shape, int)
        for b, row in enumerate(self.rollout.mask):
            slots = valid_slots(row)
            for i in range(len(row)):
                out[b, i] = next((j for j in slots if j > i), i + 1)
        return out


dfpo_case = functools.cache(FlowCase)


@functools.cache
def ppo_case(trunk="own", value_clip=0.0, **options):
    critic = CriticConfig(trunk, critic_lambda=0.8, warmup=3, loss_weight=0.7)
    config = PPOConfig(PolicyConfig(gae_lambda=0.9, **options), critic, value_clip)
    return Case(config, ppo(Markov(), config, TEMPERATURE))


def critic_case(name, trunk="own"):
    """One of both algorithms with every policy term."""
    return dfpo_case(trunk) if name == "dfpo" else ppo_case(trunk=trunk, **POLICY)
