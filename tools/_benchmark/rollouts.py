"""Rollouts that nobody sampled: what a train step costs does not depend on what was said."""

import math

import jax
import numpy as np

from dfpo_jax.types import Rollout


def made_up(shapes: Rollout, vocabulary: int) -> Rollout:
    """Random tokens in full-length responses, and rewards 0 and 1 in turn.

    Log-probabilities are those of a uniform policy, which a random one is close to.

    Args:
      shapes: from `rollout_of` with abstract arrays.
      vocabulary: number of tokens.
    """
    rng = np.random.default_rng(0)

    def filled(x):
        if x.dtype == np.int32:
            return rng.integers(0, vocabulary, x.shape, np.int32)
        return np.full(x.shape, x.dtype == np.float32, x.dtype)

    rollout, rows = jax.tree.map(filled, shapes), np.arange(len(shapes.rewards))
    uniform, rewards = np.float32(-math.log(vocabulary)), (rows % 2).astype(np.float32)
    return rollout.replace(
        log_probs=uniform * rollout.mask,
        rewards=rewards,
        clean_rewards=rewards,
        groups=(rows // shapes.samples).astype(np.int32),
        baseline=None if shapes.baseline is None else 0.5 * rollout.baseline,
        top_log_probs=None if shapes.top_log_probs is None else uniform * rollout.top_log_probs,
    )
