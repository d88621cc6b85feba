"""PPO's clipped surrogate (arXiv 1707.06347)."""

from dataclasses import dataclass
from typing import ClassVar

import jax

from dfpo_jax import ops
from dfpo_jax.metric import Metric
from dfpo_jax.objectives.interface import Objective
from dfpo_jax.settings import check_interval
from dfpo_jax.types import Loss


@dataclass(frozen=True)
class Clip:
    """-min(ratio A, clip(ratio, 1 - low, 1 + high) A), see `ops.ppo_clip`.

    Attributes:
      low, high: the ratio is clipped to [1 - low, 1 + high].
      dual: 0, or the bound c > 1 on ratio * advantage for negative advantages.

    Raises:
      ValueError: a value outside its range, named with what is allowed.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "policy/loss",
            "The clipped surrogate, in units of the advantage, mean as `objective.aggregation` "
            "says.",
            formula="`-min(rho A, clip(rho, 1 - low, 1 + high) A)`, `rho = exp(log pi - log "
            "pi_old)`; with `objective.importance_cap` times the sampler's importance weight",
            healthy="Near 0 with whitened advantages, whose mean it is at the first update with "
            "the sign changed. Its size says nothing about progress.",
            advice="Look at `rollout/reward` and `policy/kl_old` instead. Where it jumps, read "
            "`policy/gradient_norm`.",
        ),
        Metric(
            "policy/clip_fraction",
            "Share of the tokens whose gradient the clip removes, mean over the iteration's "
            "updates.",
            formula="`A > 0 and rho > 1 + high`, or `A < 0 and rho < 1 - low`",
            healthy="0 at the first update of an iteration, so also with one update; below about "
            ".2 with the default bounds.",
            advice="Where it is larger, most of the later updates is thrown away: lower "
            "`policy_optimizer.learning_rate`, `train.epochs` or `train.minibatches`. Where it is "
            "0 with several updates, the policy hardly moves: raise the learning rate.",
        ),
    )
    low: float = 0.2
    high: float = 0.2
    dual: float = 0.0

    def __post_init__(self):
        """Check ranges."""
        check_interval(self, "low", low=0.0, high=1.0)
        check_interval(self, "high", low=0.0)
        if self.dual != 0.0 and self.dual <= 1.0:
            raise ValueError(f"dual is {self.dual}; it must be 0 (off) or above 1")

    def build(self) -> Objective:
        """The objective: "loss", and the metric "clip_fraction"."""
        bounds = {"clip_low": self.low, "clip_high": self.high}

        def terms(live, batch, context, own):
            del context, own
            inputs = (live.log_probs, batch.old_log_probs, batch.advantages)
            surrogate = ops.ppo_clip(*inputs, **bounds, dual_clip=self.dual or None)
            clipped = ops.clip_fraction(*inputs, **bounds)
            return {
                "loss": Loss(surrogate * jax.lax.stop_gradient(batch.importance)),
                "clip_fraction": Loss(clipped, weight=0.0),
            }

        return Objective(terms)
