"""CalibRL's guide by an expert's response to the same prompt (arXiv 2602.20197)."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp

from dfpo_jax import ops
from dfpo_jax.metric import Metric
from dfpo_jax.objectives.interface import Objective
from dfpo_jax.settings import check_interval, check_unread
from dfpo_jax.types import Loss


@dataclass(frozen=True)
class Expert:
    """|A| LeakyReLU(-s (log pi - log-probability of the expert's token)), see
    `ops.expert_exploration`.

    Token i of the policy is compared with token i of the expert's response under the old policy,
    and with a log-probability of 0 behind its end, as in the official code.

    Attributes:
      weight: its weight in the loss (published: .1); 0 leaves it out.
      slope: of the leaky rectifier below 0 (published: .5).
      above: a response is correct where its reward is above this (published: .1).

    Raises:
      ValueError: a value outside its range, or one that nothing reads; named with what is allowed.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "policy/expert",
            "CalibRL's guide, in units of the advantage times nats, mean as "
            "`objective.aggregation` says.",
            formula="`|A| LeakyReLU(-s d)`, `d = log pi - log-probability of the expert's token`, "
            "s = 1 for a correct response, -1 for a wrong one",
            healthy="Falling. It may be below 0, where the leaky side is.",
            advice="Where it dominates `policy/gradient_norm`, lower `objective.expert.weight`. "
            "`objective.expert.above` must lie between the rewards of wrong and right responses.",
            when="with `objective.expert.weight` above 0",
        ),
    )
    added: ClassVar[bool] = True
    weight: float = 0.0
    slope: float = 0.5
    above: float = 0.1

    def __post_init__(self):
        """Check ranges."""
        check_interval(self, "weight", low=0.0)
        check_interval(self, "above", low=float("-inf"))
        if not 0.0 < self.slope <= 1.0:
            raise ValueError(f"slope is {self.slope}; it must be above 0 and at most 1")
        if self.weight == 0.0:
            check_unread(self, "slope", "above", because="weight is 0.0")

    def build(self) -> Objective:
        """The objective: "expert"."""
        if self.weight == 0.0:
            return Objective(lambda *_: {})

        def prepare(old, rollout):
            correct = jnp.asarray(rollout.rewards, jnp.float32) > self.above
            return {"correct": correct, "log_probs": old.expert_log_probs}

        def terms(live, batch, context, own):
            del context, own
            rows = batch.own["expert"]
            per_token = ops.expert_exploration(
                live.log_probs,
                rows["log_probs"],
                rows["correct"],
                batch.advantages,
                slope=self.slope,
            )
            return {"expert": Loss(per_token, weight=self.weight)}

        return Objective(terms, frozenset({"expert"}), prepare=prepare)
