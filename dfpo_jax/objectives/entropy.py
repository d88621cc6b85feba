"""The entropy of the policy, as a metric and a bonus."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from dfpo_jax import ops
from dfpo_jax.metric import Metric
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

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "policy/entropy",
            "Entropy of the policy's next token at the sampling temperature, in nats, mean over "
            "the tokens of responses.",
            formula="`-sum_v p_v log p_v`",
            healthy="It falls slowly. At most the logarithm of the vocabulary's size; near 0 the "
            "responses to a prompt are all alike.",
            advice="Where it collapses before accuracy has risen, raise "
            "`objective.entropy.coefficient`, `objective.clip.high` or `sampling.temperature`, or "
            "lower `policy_optimizer.learning_rate`. Where it rises, the bonus is too strong or "
            "the rewards are mostly noise.",
        ),
        Metric(
            "policy/entropy_bonus",
            "The entropy that the bonus counts: 0 on the tokens that are left out.",
            healthy="Below `policy/entropy`, by more than the share that is left out where the "
            "heads differ most on uncertain tokens.",
            advice="Where it is near 0 and `policy/entropy` is not, lower "
            "`objective.entropy.leave_out`.",
            when="with `objective.entropy.leave_out` above 0",
        ),
    )
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
