"""Preference pairs instead of samples, for a value model that is trained before any policy."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dfpo_jax.plans.interface import Draw, Drawn, Plan, regroup
from dfpo_jax.tasks.base import Item
from dfpo_jax.tasks.fields import column, text_of


@dataclass(frozen=True)
class Pairs:
    """Two responses from the data set to each prompt: reward 1 if chosen, -1 if rejected.

    The labels of DVPO's global value model (arXiv 2502.16944; those of its code). Nothing is
    sampled, and log-probabilities are 0: a policy cannot learn from such rows. Of rows with the
    same prompt a JSONL task uses the first, so that a prompt has one pair.

    Attributes:
      chosen: column of the better response.
      rejected: column of the worse one.

    Raises:
      ValueError: a column has no name, or both have the same.
    """

    chosen: str = "chosen"
    rejected: str = "rejected"

    def __post_init__(self):
        """Check the names."""
        for name in ("chosen", "rejected"):
            if not getattr(self, name):
                raise ValueError(f"{name} is ''; it must name a column of the data set")
        if self.chosen == self.rejected:
            raise ValueError(
                f"chosen and rejected are both {self.chosen!r}; they must name two columns"
            )

    def build(self, samples: int) -> Plan:
        """The plan for `samples` responses per prompt.

        Raises:
          ValueError: they are not two.
        """
        if samples != 2:
            raise ValueError(
                f"plan.name is 'pairs' and train.samples {samples}; it must be 2, the chosen and "
                "the rejected response"
            )
        return Plan(self._collect, frozenset({"groups"}), written=self._texts, range=(-1.0, 1.0))

    def _texts(self, item: Item) -> list[str]:
        texts = []
        for setting, name in (("chosen", self.chosen), ("rejected", self.rejected)):
            value = column(item, name, f"plan.pairs.{setting}")
            where = f"column {name!r}, which plan.pairs.{setting} names, of {item.prompt!r}"
            texts.append(text_of(where, value))
        return texts

    def _collect(
        self, draw: Draw, prompts: Callable[[int], list[Item]], count: int, samples: int
    ) -> tuple[Drawn, dict[str, float]]:
        items = prompts(count)
        texts = [text for item in items for text in self._texts(item)]
        given = draw.given([item for item in items for _ in range(samples)], texts)
        drawn = regroup(given, range(len(texts)), items)
        labels = np.tile(np.array([1.0, -1.0], np.float32), count)
        rollout = drawn.rollout.replace(rewards=labels, clean_rewards=labels)
        return drawn._replace(rollout=rollout), {}
