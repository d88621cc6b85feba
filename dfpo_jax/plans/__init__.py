"""Plans: how many responses to which prompts make an iteration. One file and one field each."""

from dataclasses import dataclass, field
from typing import ClassVar

from dfpo_jax.plans.uniform import Uniform
from dfpo_jax.settings import Choice


@dataclass(frozen=True)
class Plans(Choice):
    """How an iteration's rollout is collected.

    Attributes:
      name: "uniform", or one of your own.
      custom: settings of one of your own.
    """

    kind: ClassVar[str] = "plan"
    name: str = "uniform"
    uniform: Uniform = field(default_factory=Uniform)
