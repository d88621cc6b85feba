"""REINFORCE++: the return of every token, compared with all others of the batch."""

from dataclasses import dataclass

import jax.numpy as jnp

from dfpo_jax import ops
from dfpo_jax.advantages.interface import Advantage


@dataclass(frozen=True)
class Batch:
    """The return from every token on (arXiv 2501.03262); no settings.

      A_t = sum over k >= t of gamma^(k - t) r_k

    The rewards of single tokens count, such as a KL in the reward: A_t = r - beta sum KL_k. With
    `advantage.whiten`, the mean and deviation over all tokens of the batch are its baseline and its
    unit, as published. A response that bootstraps goes on with the mean of the critic's law; no
    other value is read.
    """

    def build(self) -> Advantage:
        """The advantage."""

        def estimate(view, steps, rollout):
            del rollout
            end = None
            if view is not None:
                means = jnp.mean(view.law, axis=-1)
                end = ops.final_values(means, steps.mask, steps.bootstrap)
            result, _ = ops.gae(
                steps.rewards,
                jnp.zeros_like(steps.rewards),
                steps.mask,
                discount=steps.discount,
                lambda_=1.0,
                final_values=end,
            )
            return result

        return Advantage(estimate)
