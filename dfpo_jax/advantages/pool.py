"""Reinforce-Ada: a response is compared with the whole pool that it was chosen from."""

from dataclasses import dataclass

import jax.numpy as jnp

from dfpo_jax.advantages.interface import Advantage


@dataclass(frozen=True)
class Pool:
    """Every token of a response has A = r - the pool's mean reward (arXiv 2510.04996); no settings.

    The rows of a prompt were chosen so that their rewards differ; their own mean would not be the
    policy's. It is not divided by a deviation.
    """

    def build(self) -> Advantage:
        """The advantage."""

        def estimate(view, steps, rollout):
            del view
            rewards = jnp.asarray(rollout.rewards, jnp.float32)
            relative = rewards - jnp.asarray(rollout.baseline, jnp.float32)
            return relative[:, None] * steps.mask

        return Advantage(estimate, frozenset({"pool"}), whole_response=True)
