"""The entropy of the policy, as a metric and a bonus."""

from dataclasses import dataclass
from typing import ClassVar

import jax

from dfpo_jax.objectives.interface import Objective
from dfpo_jax.settings import check_interval
from dfpo_jax.types import Loss


@dataclass(frozen=True)
class Entropy:
    """The mean entropy, subtracted from the loss.

    Attributes:
      coefficient: its weight (per nat); 0 for a metric alone.

    Raises:
      ValueError: a value outside its range, named with what is allowed.
    """

    added: ClassVar[bool] = True
    coefficient: float = 0.0

    def __post_init__(self):
        """Check ranges."""
        check_interval(self, "coefficient", low=0.0)

    def build(self) -> Objective:
        """The objective: "entropy"."""

        def terms(live, batch, context, own):
            del batch, context, own
            # Without the stop, a weight of 0 would still cost the gradient's computation.
            entropy = live.entropy if self.coefficient else jax.lax.stop_gradient(live.entropy)
            return {"entropy": Loss(entropy, weight=-self.coefficient)}

        return Objective(terms)
