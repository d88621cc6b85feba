"""The KL to the policy that the run started with, in the loss or in the reward."""

import math
from dataclasses import dataclass
from typing import ClassVar

from dfpo_jax import ops
from dfpo_jax.metric import Metric
from dfpo_jax.objectives.interface import Objective
from dfpo_jax.settings import check_choice, check_interval, check_unread
from dfpo_jax.types import Loss

CONTROL = "kl_coefficient"


@dataclass(frozen=True)
class Kl:
    """A KL penalty with a fixed or an adaptive coefficient (arXiv 1909.08593, section 2.2).

    Attributes:
      coefficient: its weight (per nat); 0 keeps no reference.
      estimator: "k1", "k2" or "k3", see `ops.kl_estimate`.
      where: "loss" or "reward".
      target: 0 for a fixed coefficient, else the KL (nats per token) a controller aims at.
      horizon: the controller's horizon, in iterations.

    Raises:
      ValueError: a value outside its range, or one that nothing reads; named with what is allowed.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "policy/kl",
            "KL divergence of the policy from the one that the run started with, in nats per "
            "token, mean over the iteration's updates.",
            formula="with `d = log pi_ref - log pi`: `exp(d) - 1 - d` (k3), `-d` (k1) or `d^2 / 2` "
            "(k2), by `objective.kl.estimator`",
            healthy="It grows from 0 and levels off, with `objective.kl.target` near that target. "
            "How much is right depends on the task: compare it with held-out accuracy.",
            advice="Where it grows while `eval/in_domain/accuracy` falls, raise "
            "`objective.kl.coefficient`. Where it stays near 0 and accuracy does not rise, lower "
            "it.",
            when="with `objective.kl.coefficient` above 0",
        ),
        Metric(
            "policy/kl_coefficient",
            "Weight of the KL penalty at the end of the iteration, per nat.",
            formula="with `objective.kl.target` it is multiplied by `1 + clip(KL / target - 1, "
            "-.2, .2) / horizon` after every iteration; else `objective.kl.coefficient`",
            healthy="With a target, it settles.",
            advice="Where it grows without end, the target is out of reach: raise "
            "`objective.kl.target`, or lower `policy_optimizer.learning_rate`. Where it lags "
            "behind, lower `objective.kl.horizon`.",
        ),
    )
    added: ClassVar[bool] = True
    coefficient: float = 0.0
    estimator: str = "k3"
    where: str = "loss"
    target: float = 0.0
    horizon: int = 100

    def __post_init__(self):
        """Check ranges and names."""
        check_interval(self, "coefficient", "target", low=0.0)
        check_interval(self, "horizon", low=1)
        check_choice(self, "estimator", ops.KL_KINDS)
        check_choice(self, "where", ("loss", "reward"))
        if self.target > 0.0 and self.coefficient == 0.0:
            raise ValueError("target is set but coefficient is 0; give it a start value")
        if self.coefficient == 0.0:
            check_unread(self, "estimator", "where", because="coefficient is 0.0")
        if self.target == 0.0:
            check_unread(self, "horizon", because="target is 0.0")

    def build(self) -> Objective:
        """The objective: "kl", and the control "kl_coefficient"."""
        controls = {CONTROL: self.coefficient}
        if self.coefficient == 0.0:
            return Objective(lambda *_: {}, controls=controls, observe=lambda current: controls)
        in_loss = self.where == "loss"

        def terms(live, batch, context, own):
            del own
            kl = ops.kl_estimate(live.log_probs, batch.ref_log_probs, self.estimator)
            return {"kl": Loss(kl, weight=context.controls[CONTROL] if in_loss else 0.0)}

        def reward(old):
            kl = ops.kl_estimate(old.log_probs, old.ref_log_probs, self.estimator)
            return -(old.controls[CONTROL] * kl * old.mask)

        def observe(current):
            # A fixed coefficient is the configured one, also in a run that goes on with another.
            return current if self.target > 0.0 else controls

        def adapt(current, means):
            if self.target == 0.0 or not math.isfinite(means["policy/kl"]):  # no update was made
                return current
            coefficient = ops.adaptive_kl_update(
                current[CONTROL],
                means["policy/kl"],
                target=self.target,
                horizon=self.horizon,
                num_tokens_or_steps=1,
            )
            return {CONTROL: coefficient}

        return Objective(
            terms,
            frozenset({"reference"}),
            reward=None if in_loss else reward,
            controls=controls,
            observe=observe,
            adapt=adapt,
        )
