"""GSPO: the clipped surrogate on the ratio of whole responses (arXiv 2507.18071)."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from dfpo_jax import ops
from dfpo_jax.metric import Metric
from dfpo_jax.objectives.interface import Objective
from dfpo_jax.settings import check_interval
from dfpo_jax.types import Loss


@dataclass(frozen=True)
class Sequence:
    """-min(s A, clip(s, 1 - low, 1 + high) A) with the ratio s of a response per token.

    It is GSPO-token (section 4.3 of the paper): the value of s, and the gradient of each token's
    own ratio. Where the tokens of a response share an advantage, as in the paper, value and
    gradient are GSPO's; another advantage keeps its credit to single tokens. It is averaged over
    responses, whatever `aggregation` says.

    Attributes:
      low, high: s is clipped to [1 - low, 1 + high]; the defaults are published.

    Raises:
      ValueError: a value outside its range, named with what is allowed.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "policy/loss",
            "The clipped surrogate on the ratio of whole responses, in units of the advantage, "
            "mean over responses of the means over their tokens.",
            formula="`-min(s A, clip(s, 1 - low, 1 + high) A)`, `s = exp(mean_t (log pi - log "
            "pi_old))`",
            healthy="Near 0 for advantages with a mean of 0. Its size says nothing about progress.",
            advice="Look at `rollout/reward` and `policy/kl_old` instead. Where it jumps, read "
            "`policy/gradient_norm`.",
        ),
        Metric(
            "policy/clip_fraction",
            "Share of the tokens whose gradient the clip removes, mean over responses and the "
            "iteration's updates. Where the tokens of a response share an advantage it is all of "
            "them or none.",
            formula="`A > 0 and s > 1 + high`, or `A < 0 and s < 1 - low`",
            healthy="0 at the first update of an iteration. The published bounds of 3e-4 and 4e-4 "
            "are narrow, so that it is far larger than that of `clip` for the same step.",
            advice="Near 1 most of the later updates is thrown away: widen "
            "`objective.sequence.low` and `objective.sequence.high`, or lower "
            "`policy_optimizer.learning_rate`.",
        ),
    )
    low: float = 3e-4
    high: float = 4e-4

    def __post_init__(self):
        """Check ranges."""
        check_interval(self, "low", low=0.0, high=1.0)
        check_interval(self, "high", low=0.0)

    def build(self) -> Objective:
        """The objective: "loss", and the metric "clip_fraction"."""
        bounds = {"clip_low": self.low, "clip_high": self.high}

        def terms(live, batch, context, own):
            del context, own
            ratio = ops.sequence_ratio(live.log_probs, batch.old_log_probs, batch.mask)
            moved = live.log_probs - jax.lax.stop_gradient(live.log_probs)  # 0, with a gradient
            log_ratio = jax.lax.stop_gradient(jnp.log(ratio))[:, None] + moved
            inputs = (log_ratio, jnp.zeros_like(log_ratio), batch.advantages)
            surrogate = ops.ppo_clip(*inputs, **bounds) * jax.lax.stop_gradient(batch.importance)
            clipped = ops.clip_fraction(*inputs, **bounds)
            return {
                "loss": Loss(surrogate, aggregation="sequence_mean"),
                "clip_fraction": Loss(clipped, weight=0.0, aggregation="sequence_mean"),
            }

        return Objective(terms)
