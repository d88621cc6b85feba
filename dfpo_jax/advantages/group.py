"""GRPO, Dr. GRPO and RLOO: a response is compared with the others to its prompt."""

from dataclasses import dataclass

import jax.numpy as jnp

from dfpo_jax import ops
from dfpo_jax.advantages.interface import Advantage
from dfpo_jax.settings import check_choice


@dataclass(frozen=True)
class Group:
    """Every token of response k has A_k = (r_k - mean(r)) / (std(r) + 1e-6) over its group.

    Attributes:
      baseline: "mean", that of the whole group, or "leave_one_out", that of the others in it (RLOO,
        arXiv 2402.14740).
      normalize: whether the difference is divided by the group's deviation (GRPO, arXiv 2402.03300,
        section 4.1) or not (Dr. GRPO, arXiv 2503.20783, section 3). Only with "mean".

    Raises:
      ValueError: another baseline, or one that is not normalised.
    """

    baseline: str = "mean"
    normalize: bool = True

    def __post_init__(self):
        """Check names."""
        check_choice(self, "baseline", ("mean", "leave_one_out"))
        if self.normalize and self.baseline != "mean":
            raise ValueError(
                f"baseline is {self.baseline!r} and normalize True; only 'mean' is normalised"
            )

    def build(self) -> Advantage:
        """The advantage."""

        def estimate(view, steps, rollout):
            del view
            rewards = jnp.asarray(rollout.rewards, jnp.float32)
            if self.baseline == "mean":
                relative = ops.group_relative(rewards, rollout.samples, normalize=self.normalize)
            else:
                relative = ops.rloo(rewards, rollout.samples)
            return relative[:, None] * steps.mask

        return Advantage(estimate, frozenset({"groups"}), whole_response=True)
