"""The entropy of the policy, as a metric and a bonus."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from dfpo_jax import ops
from dfpo_jax.objectives.interface import Objective
from dfpo_jax.settings import check_interval, check_unread
from dfpo_jax.types import Loss


@dataclass(frozen=True)
class Entropy:
    """The mean entropy, subtracted from the loss.

    Attributes:
      coefficient: its weight (per nat); 0 for a metric alone.
      leave_out: share of the valid tokens of an iteration, those on which a critic's heads differ
        most, that have no part in it (AsyPPO, arXiv 2510.01656, known from summaries alone).

    Raises:
      ValueError: a value outside its range, named with what is allowed.
    """

    added: ClassVar[bool] = True
    coefficient: float = 0.0
    leave_out: float = 0.0

    def __post_init__(self):
        """Check ranges."""
        check_interval(self, "coefficient", low=0.0)
        check_interval(self, "leave_out", low=0.0, high=1.0)
        if self.coefficient == 0.0:
            check_unread(self, "leave_out", because="coefficient is 0.0")

    def build(self) -> Objective:
        """The objective: "entropy"."""

        def terms(live, batch, context, own):
            del context, own
            if self.coefficient == 0.0:
                # Without the stop, a weight of 0 would still cost the gradient's computation.
                return {"entropy": Loss(jax.lax.stop_gradient(live.entropy), weight=0.0)}
            if self.leave_out == 0.0:
                return {"entropy": Loss(live.entropy, weight=-self.coefficient)}
            kept = live.entropy * jax.lax.stop_gradient(batch.own["entropy"])
            return {
                "entropy": Loss(jax.lax.stop_gradient(live.entropy), weight=0.0),
                "entropy_bonus": Loss(kept, weight=-self.coefficient),
            }

        def prepare(old, rollout):
            del rollout
            spread = jnp.std(old.heads, axis=-1)
            return 1.0 - ops.lowest_share(-spread, old.mask, self.leave_out)

        if self.leave_out == 0.0:
            return Objective(terms)
        return Objective(terms, frozenset({"heads"}), prepare=prepare)
