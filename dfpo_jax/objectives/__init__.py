"""Objectives: what the policy minimises. One file and one field each."""

import functools
from dataclasses import dataclass, field
from typing import ClassVar

from dfpo_jax import ops
from dfpo_jax.objectives.check import check_objective
from dfpo_jax.objectives.cispo import Cispo
from dfpo_jax.objectives.clip import Clip
from dfpo_jax.objectives.divergence import Divergence
from dfpo_jax.objectives.entropy import Entropy
from dfpo_jax.objectives.expert import Expert
from dfpo_jax.objectives.flowrl import Flowrl
from dfpo_jax.objectives.interface import Live, Objective, Old
from dfpo_jax.objectives.kl import Kl
from dfpo_jax.objectives.positive import Positive
from dfpo_jax.objectives.sequence import Sequence
from dfpo_jax.objectives.truncated import Truncated
from dfpo_jax.settings import Choice, check_choice, check_interval, check_unread

__all__ = ["Live", "Objective", "Objectives", "Old", "check_objective"]


@dataclass(frozen=True)
class Objectives(Choice):
    """The policy's loss, and what is added to it.

    Attributes:
      name: the policy's loss, one of those below that are not added to it; or one of your own.
      custom: settings of one of your own.
      aggregation: "token_mean", "sequence_mean" or "constant_length", see
        `ops.aggregate_weights`. A loss that is one number per response has its own.
      importance_cap: 0, or the cap of truncated importance weights between sampler and trainer;
        0 where the loss's own ratios start at the sampler.
      entropy, kl, positive, expert: added to the loss, each by its coefficient or weight.

    Raises:
      ValueError: a value outside its range, named with what is allowed.
    """

    kind: ClassVar[str] = "objective"
    name: str = "clip"
    aggregation: str = "token_mean"
    importance_cap: float = 0.0
    clip: Clip = field(default_factory=Clip)
    sequence: Sequence = field(default_factory=Sequence)
    cispo: Cispo = field(default_factory=Cispo)
    divergence: Divergence = field(default_factory=Divergence)
    truncated: Truncated = field(default_factory=Truncated)
    flowrl: Flowrl = field(default_factory=Flowrl)
    entropy: Entropy = field(default_factory=Entropy)
    kl: Kl = field(default_factory=Kl)
    positive: Positive = field(default_factory=Positive)
    expert: Expert = field(default_factory=Expert)

    def __post_init__(self):
        """Check ranges and names."""
        super().__post_init__()
        check_choice(self, "aggregation", ops.AGGREGATIONS)
        check_interval(self, "importance_cap", low=0.0)
        if getattr(self.chosen, "anchored", False):
            check_unread(self, "importance_cap", because=f"name is {self.name!r}")

    def build(self) -> dict[str, Objective]:
        """The chosen objective, as "objective", and those that stand beside it, by name.

        Raises:
          ValueError: an objective of your own is wrong; one line.
        """
        others = {name: part.build() for name, part in self.added.items()}
        chosen = self.build_chosen(functools.partial(check_objective, others=others))
        return {"objective": chosen, **others}
