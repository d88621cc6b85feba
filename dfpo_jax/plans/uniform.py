"""Equally many responses to every prompt, in one round."""

from collections.abc import Callable
from dataclasses import dataclass

from dfpo_jax.plans.interface import Draw, Drawn, Plan
from dfpo_jax.tasks.base import Item


@dataclass(frozen=True)
class Uniform:
    """All of an iteration's prompts, each with the same number of responses; no settings."""

    def build(self, samples: int) -> Plan:
        """The plan for `samples` responses per prompt."""
        return Plan(_collect, frozenset({"groups"} if samples >= 2 else ()))


def _collect(
    draw: Draw, prompts: Callable[[int], list[Item]], count: int, samples: int
) -> tuple[Drawn, dict[str, float]]:
    return draw(prompts(count), samples, 0), {}
