"""CISPO: clipped importance weights, which leave every token its gradient (arXiv 2506.13585)."""

from dataclasses import dataclass

import jax

from dfpo_jax import ops
from dfpo_jax.objectives.interface import Objective
from dfpo_jax.settings import check_interval
from dfpo_jax.types import Loss


@dataclass(frozen=True)
class Cispo:
    """-clip(ratio, 1 - low, 1 + high) A log pi with the weight stopped, see `ops.cispo`.

    Attributes:
      low, high: the weight is clipped to [1 - low, 1 + high]. The paper has no lower bound, as with
        low 1, and does not print its upper one; 3, with high 2, is what DPPO's authors ran CISPO
        with (arXiv 2602.04879).

    Raises:
      ValueError: a value outside its range, named with what is allowed.
    """

    low: float = 1.0
    high: float = 2.0

    def __post_init__(self):
        """Check ranges."""
        check_interval(self, "low", low=0.0, high=1.0)
        check_interval(self, "high", low=0.0)

    def build(self) -> Objective:
        """The objective: "loss", and the metric "clip_fraction", of clipped weights that matter."""
        bounds = {"clip_low": self.low, "clip_high": self.high}

        def terms(live, batch, context, own):
            del context, own
            inputs = (live.log_probs, batch.old_log_probs, batch.advantages)
            return {
                "loss": Loss(
                    ops.cispo(*inputs, **bounds) * jax.lax.stop_gradient(batch.importance)
                ),
                "clip_fraction": Loss(ops.clip_fraction(*inputs, **bounds), weight=0.0),
            }

        return Objective(terms)
