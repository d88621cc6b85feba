"""Plans: how many responses to which prompts make an iteration. One file and one field each."""

import functools
from dataclasses import dataclass, field
from typing import ClassVar

from dfpo_jax.plans.check import check_plan, guarded
from dfpo_jax.plans.elimination import Elimination
from dfpo_jax.plans.hybrid import Hybrid
from dfpo_jax.plans.interface import Draw, Drawn, Plan, join, regroup
from dfpo_jax.plans.pairs import Pairs
from dfpo_jax.plans.refill import Refill
from dfpo_jax.plans.uniform import Uniform
from dfpo_jax.settings import Choice

__all__ = ["Draw", "Drawn", "Plan", "Plans", "check_plan", "join", "regroup"]


@dataclass(frozen=True)
class Plans(Choice):
    """How an iteration's rollout is collected.

    Attributes:
      name: one of the plans below, or one of your own.
      custom: settings of one of your own.

    Raises:
      ValueError: there is no such plan.
    """

    kind: ClassVar[str] = "plan"
    name: str = "uniform"
    uniform: Uniform = field(default_factory=Uniform)
    refill: Refill = field(default_factory=Refill)
    elimination: Elimination = field(default_factory=Elimination)
    hybrid: Hybrid = field(default_factory=Hybrid)
    pairs: Pairs = field(default_factory=Pairs)

    def build(self, samples: int) -> Plan:
        """The plan for `samples` responses per prompt.

        Raises:
          ValueError: the plan takes another number of samples, or one of your own is wrong; one
            line. The `collect` of one of your own raises it too, during training.
        """
        plan = self.build_chosen(functools.partial(check_plan, samples=samples), samples)
        return guarded(plan, self.name) if self.is_own else plan
