"""States and a token MDP for critics and advantages, without a transformer."""

import jax
import numpy as np
from reference_policy import valid_slots
from tiny import ragged_rollout

from dfpo_jax.types import Steps

DISCOUNT, WIDTH = 0.9, 6


def random_steps(discount=DISCOUNT, bootstrap=True):
    """The ragged rows with a reward on every token: a gap, one token, none; two rows bootstrap."""
    rollout = ragged_rollout()
    rewards = np.random.default_rng(3).normal(size=rollout.mask.shape) * rollout.mask
    return Steps(rewards.astype(np.float32), rollout.mask, rollout.truncated & bootstrap, discount)


def random_states(seed=4):
    """[B, R + 1, D] states of these rows."""
    batch, length = ragged_rollout().mask.shape
    return np.random.default_rng(seed).normal(size=(batch, length + 1, WIDTH)).astype(np.float32)


def row_keys():
    """[B] keys."""
    return jax.random.split(jax.random.key(5), len(ragged_rollout().mask))


def successors(mask):
    """[B, R] index of the state after each token, which skips gaps."""
    out = np.zeros(mask.shape, int)
    for b, row in enumerate(mask):
        slots = valid_slots(row)
        for i in range(len(row)):
            out[b, i] = next((j for j in slots if j > i), i + 1)
    return out
