"""VAPO's imitation of the policy's own correct responses (arXiv 2504.05118)."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from dfpo_jax.metric import Metric
from dfpo_jax.objectives.interface import Objective
from dfpo_jax.settings import check_interval, check_unread
from dfpo_jax.types import Loss


@dataclass(frozen=True)
class Positive:
    """The mean of -log pi over the tokens of all responses with a good reward.

    The mean is over the tokens of those responses in the whole rollout, so that neither micro-
    batches nor devices change it. The definition is from summaries of the paper and from several
    implementations.

    Attributes:
      weight: its weight in the loss (published: .1); 0 leaves it out.
      above: a response is good where its reward is above this.

    Raises:
      ValueError: a value outside its range, or one that nothing reads; named with what is allowed.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "policy/positive",
            "Negative log-probability of the tokens of good responses, in nats per token.",
            formula="`mean -log pi` over the tokens of all responses with a reward above "
            "`objective.positive.above`; 0 where there is none",
            healthy="Falling; about `policy/entropy` or less, as the policy sampled them.",
            advice="At 0 no response is good: lower `objective.positive.above` to a reward that "
            "occurs. Where entropy collapses with it, lower `objective.positive.weight`.",
            when="with `objective.positive.weight` above 0",
        ),
    )
    added: ClassVar[bool] = True
    weight: float = 0.0
    above: float = 0.5

    def __post_init__(self):
        """Check ranges."""
        check_interval(self, "weight", low=0.0)
        check_interval(self, "above", low=float("-inf"))
        if self.weight == 0.0:
            check_unread(self, "above", because="weight is 0.0")

    def build(self) -> Objective:
        """The objective: "positive"."""
        if self.weight == 0.0:
            return Objective(lambda *_: {})

        def prepare(old, rollout):
            good = jnp.asarray(rollout.rewards, jnp.float32) > self.above
            valid = old.mask.astype(bool)
            tokens = jnp.sum(valid, dtype=jnp.float32)
            theirs = jnp.sum(valid & good[:, None], dtype=jnp.float32)
            # A mean over all tokens of what this scales is the mean over those of good responses.
            return {"scale": good * (tokens / jnp.maximum(theirs, 1.0))}

        def terms(live, batch, context, own):
            del context, own
            scale = jax.lax.stop_gradient(batch.own["positive"]["scale"])
            per_token = -live.log_probs * scale[:, None]
            return {"positive": Loss(per_token, weight=self.weight, aggregation="token_mean")}

        return Objective(terms, prepare=prepare)
