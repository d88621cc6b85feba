"""Composed algorithms on the ragged rows, each compiled once, that several files test."""

import functools

import jax
import numpy as np
import tiny
from reference_policy import state_tokens
from tiny import Markov, ragged_rollout

from dfpo_jax.advantages import Advantages, Gae
from dfpo_jax.algorithms import AlgorithmConfig, Returns, compose
from dfpo_jax.critics import Critics, Flow, Quantile, Scalar
from dfpo_jax.objectives import Entropy, Kl, Objectives

KEY = jax.random.key(5)
TEMPERATURE, LAMBDA, WARMUP, LOSS_WEIGHT = 0.8, 0.8, 3, 0.7
CRITICS, GAE = ("scalar", "quantile", "flow"), Gae(0.9)
# Every policy term is on.
OBJECTIVE = Objectives(
    aggregation="sequence_mean", importance_cap=2.0, entropy=Entropy(0.01), kl=Kl(0.1)
)
# What the flow's own losses are is tested without a transformer; here each kind of mask is enough.
LIGHT = Flow(head=tiny.HEAD, num_samples=2, num_steps=1, solver="euler", num_quantiles=3)
INTEGRATED = Flow(
    head=tiny.HEAD,
    num_samples=2,
    num_steps=16,
    first_step=1.0,
    solver="euler",
    num_quantiles=5,
    inference="ode",
)


class Case:
    """An algorithm on the ragged rows: state, batch, and jitted losses with gradients."""

    def __init__(self, config):
        self.config, self.critic = config, config.critic.chosen.build()
        self.algorithm = compose(Markov(), config, TEMPERATURE)
        self.rollout = ragged_rollout()
        self.state = tiny.make_state(self.algorithm, step=WARMUP)
        self.prepare = jax.jit(self.algorithm.prepare)
        self.batch, self.context = self.prepare(self.state, self.rollout, KEY)
        self.losses = tiny.evaluator(self.algorithm)
        # Parameters other than the old ones.
        self.moved = tiny.randomised(self.state.params, seed=8, scale=0.1)

    def run(self, params=None, batch=None, context=None):
        return self.losses(
            self.state.params if params is None else params,
            self.batch if batch is None else batch,
            self.context if context is None else context,
            KEY,
        )

    def states(self, params):
        """[B, R + 1, D] what the critic's head reads at s_0 .. s_R."""
        own = self.config.critic.trunk == "own"
        trunk = params["critic"]["trunk"] if own else params["policy"]
        return trunk["embedding"][state_tokens(self.rollout)]

    @functools.cached_property
    def law(self):
        """[B, R + 1, M] the critic's quantiles at s_0 .. s_R."""
        head = self.state.params["critic"]["head"]
        return np.asarray(self.critic.law(self.critic.read(head, self.states(self.state.params))))


@functools.cache
def critic_case(
    name,
    trunk="own",
    advantage=GAE,
    *,
    whiten=True,
    discount=0.9,
    overlong="bootstrap",
    flow=LIGHT,
):
    """An algorithm of one critic with every policy term."""
    critic = Critics(
        name,
        trunk=trunk,
        lambda_=LAMBDA,
        warmup=WARMUP,
        loss_weight=LOSS_WEIGHT,
        scalar=Scalar(value_clip=0.5),
        quantile=Quantile(5),
        flow=flow,
    )
    chosen = type(advantage).__name__.lower()
    advantages = Advantages(chosen, whiten=whiten, **{chosen: advantage})
    returns = Returns(discount, overlong)
    return Case(AlgorithmConfig(critic, advantages, OBJECTIVE, returns))
