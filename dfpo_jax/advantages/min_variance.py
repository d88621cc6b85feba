"""VCPO's baseline: the one of least variance under importance weights (arXiv 2602.17616)."""

from dataclasses import dataclass

import jax.numpy as jnp

from dfpo_jax import ops
from dfpo_jax.advantages.interface import Advantage
from dfpo_jax.settings import check_choice


@dataclass(frozen=True)
class MinVariance:
    """A_k = r_k - b, b = sum_i w_i^2 ||g_i||^2 r_i / sum_i w_i^2 ||g_i||^2.

    w_i = pi(y_i) / mu(y_i), not truncated, and g_i = grad log pi(y_i). The paper's code takes both
    at every update; here they are those of the policy that the iteration starts with, which is the
    same with one update per iteration.

    Attributes:
      scope: the responses that share a baseline: "group", those to one prompt, or "batch".
      normalize: whether the difference is divided by the deviation of these rewards.

    Raises:
      ValueError: another scope.
    """

    scope: str = "group"
    normalize: bool = False

    def __post_init__(self):
        """Check names."""
        check_choice(self, "scope", ("group", "batch"))

    def build(self) -> Advantage:
        """The advantage."""

        def estimate(view, steps, rollout):
            rewards = jnp.asarray(rollout.rewards, jnp.float32)
            size = rollout.samples if self.scope == "group" else len(rewards)
            scores = (view.scores.log_weights, view.scores.squared_norms)
            relative = ops.min_variance(rewards, *scores, size, normalize=self.normalize)
            return relative[:, None] * steps.mask

        needs = {"scores"} | ({"groups"} if self.scope == "group" else set())
        return Advantage(estimate, frozenset(needs), whole_response=True)
