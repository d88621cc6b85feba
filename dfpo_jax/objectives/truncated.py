"""VCPO's policy loss: truncated importance weights of whole responses (arXiv 2602.17616)."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from dfpo_jax import ops
from dfpo_jax.metric import Metric
from dfpo_jax.objectives.interface import Objective
from dfpo_jax.types import Loss


@dataclass(frozen=True)
class Truncated:
    """-min(w, cap) A log pi, the weight stopped, with w = exp(sum_t(log pi - log mu)); no clip.

    w is a response's own probability under the policy over that under the one that sampled it; its
    logarithm is clamped to +-30, see `ops.sequence_weight`. As w starts at the sampler's own
    log-probabilities, nothing else corrects for it: `importance_cap` must be 0. The definition is
    that of the official code.

    Attributes:
      cap: the largest weight of a response (published: 8).

    Raises:
      ValueError: a value outside its range, named with what is allowed.
    """

    anchored: ClassVar[bool] = True
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "policy/loss",
            "The policy gradient with truncated weights of whole responses, in units of the "
            "advantage times nats, mean as `objective.aggregation` says.",
            formula="`-min(w, cap) A log pi`, the weight without gradient, `w = exp(sum_t (log pi "
            "- log mu))` against the policy that sampled",
            healthy="Its size says nothing: its gradient alone matters.",
            advice="Look at `policy/effective_samples`, `rollout/reward` and `policy/kl_old` "
            "instead.",
        ),
    )
    cap: float = 8.0

    def __post_init__(self):
        """Check ranges."""
        if not self.cap > 0.0:
            raise ValueError(f"cap is {self.cap}; it must be above 0")

    def build(self) -> Objective:
        """The objective: "loss"."""

        def terms(live, batch, context, own):
            del context, own
            weight = ops.sequence_weight(live.log_probs, batch.behaviour_log_probs, batch.mask)
            gain = jnp.minimum(weight, self.cap)[:, None] * jax.lax.stop_gradient(batch.advantages)
            return {"loss": Loss(-gain * live.log_probs)}

        return Objective(terms, frozenset({"behaviour"}))
