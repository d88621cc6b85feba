"""Responses of the policy beside one that an expert wrote."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dfpo_jax.plans.interface import Draw, Drawn, Plan
from dfpo_jax.tasks.base import Item
from dfpo_jax.tasks.fields import column, text_of
from dfpo_jax.types import Expert


@dataclass(frozen=True)
class Hybrid:
    """All prompts in one round, as in `Uniform`, and an expert's response to each of them.

    The expert's response is no row of the rollout: it stands beside every row of its prompt, in
    `Rollout.expert`. So baselines and critics are those of the policy's own responses, as in
    CalibRL's code (arXiv 2602.20197), which masks the expert's rows out of both losses.

    Attributes:
      column: the column of the data set that holds the expert's response, such as "solution" or
        "extra.messages.1.content"; "" for the task's own answers.
    """

    column: str = ""

    def build(self, samples: int) -> Plan:
        """The plan for `samples` responses per prompt."""
        gives = {"expert", "groups"} if samples >= 2 else {"expert"}
        return Plan(self._collect, frozenset(gives), written=lambda item: [self._text(item)])

    def _text(self, item: Item) -> str:
        if self.column:
            setting = "plan.hybrid.column"
            value = column(item, self.column, setting)
            return text_of(
                f"column {self.column!r}, which {setting} names, of {item.prompt!r}", value
            )
        if not item.answer:
            raise ValueError(
                f"plan.hybrid.column is '', and prompt {item.prompt!r} has no answer; it must name "
                "a column with an expert's responses"
            )
        return item.answer

    def _collect(
        self, draw: Draw, prompts: Callable[[int], list[Item]], count: int, samples: int
    ) -> tuple[Drawn, dict[str, float]]:
        items = prompts(count)
        drawn = draw(items, samples, 0)
        theirs = draw.given(items, [self._text(item) for item in items]).rollout
        expert = Expert(*(np.repeat(x, samples, axis=0) for x in (theirs.tokens, theirs.mask)))
        return drawn._replace(rollout=drawn.rollout.replace(expert=expert)), {}
