"""CISPO: clipped importance weights, which leave every token its gradient (arXiv 2506.13585)."""

from dataclasses import dataclass
from typing import ClassVar

import jax

from dfpo_jax import ops
from dfpo_jax.metric import Metric
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

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "policy/loss",
            "The policy gradient with clipped weights, in units of the advantage times nats, mean "
            "as `objective.aggregation` says.",
            formula="`-clip(rho, 1 - low, 1 + high) A log pi`, the weight without gradient, `rho = "
            "exp(log pi - log pi_old)`",
            healthy="Its size says nothing: its gradient alone matters.",
            advice="Look at `rollout/reward` and `policy/kl_old` instead. Where it jumps, read "
            "`policy/gradient_norm`.",
        ),
        Metric(
            "policy/clip_fraction",
            "Share of the tokens that `clip` would leave without a gradient at these bounds. Here "
            "they keep one, with a clipped weight.",
            formula="`A > 0 and rho > 1 + high`, or `A < 0 and rho < 1 - low`",
            healthy="Near 0 with the default bounds, which clip ratios above 3 alone.",
            advice="Where it is not, the policy has moved far within an iteration: lower "
            "`policy_optimizer.learning_rate`, `train.epochs` or `train.minibatches`.",
        ),
    )
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
