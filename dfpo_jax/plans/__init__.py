"""Sampling plans: how many responses to which prompts an iteration draws."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from dfpo_jax.plans.check import check_plan
from dfpo_jax.plans.interface import Draw, Drawn, Plan, join
from dfpo_jax.plans.uniform import Uniform
from dfpo_jax.settings import call_custom, check_unread, load_part

__all__ = ["Draw", "Drawn", "Plan", "Plans", "check_plan", "join"]


@dataclass(frozen=True)
class Plans:
    """The choice of a plan.

    Attributes:
      name: a field of this section, or "my_package.my_module:MyPlan".
      custom: settings of a plan of your own.
      uniform: one round of all prompts.

    Raises:
      ValueError: there is no plan of this name, or `custom` is set and the plan is not your own.
    """

    name: str = "uniform"
    custom: Mapping[str, Any] = field(default_factory=dict)
    uniform: Uniform = field(default_factory=Uniform)

    def __post_init__(self):
        """Check the name."""
        if ":" in self.name:
            return
        known = [part.name for part in fields(self) if part.name not in ("name", "custom")]
        if self.name not in known:
            raise ValueError(
                f"name is {self.name!r}; it must be one of {', '.join(known)}, or module:Class"
            )
        check_unread(self, "custom", because=f"nothing reads it while name is {self.name!r}")

    def build(self, samples: int) -> Plan:
        """The plan for `samples` responses per prompt.

        Raises:
          ValueError: a plan of your own is wrong; one line.
        """
        if ":" not in self.name:
            return getattr(self, self.name).build(samples)
        part = load_part(self.name, self.custom, "plan")
        plan = call_custom(self.name, "build", lambda: part.build(samples))
        check_plan(plan, self.name, samples)
        return plan
