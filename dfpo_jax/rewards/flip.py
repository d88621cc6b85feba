"""Flipped verdicts: wrong responses rewarded as right, right ones as wrong."""

from dataclasses import dataclass

import numpy as np

from dfpo_jax.rewards.interface import Link, Range, Scored, generator
from dfpo_jax.settings import check_interval, check_unread

_STREAM = 0


@dataclass(frozen=True)
class Flip:
    """With m the midpoint of the range [low, high] of the rewards that come in:

      r < m   becomes high with probability `false_positive`,
      r >= m  becomes low with probability `false_negative`.

    The model is ours.

    Attributes:
      false_positive: probability in [0, 1].
      false_negative: probability in [0, 1].
      seed: >= 0.

    Raises:
      ValueError: a field is outside its range, or a seed is set and nothing flips.
    """

    false_positive: float = 0.0
    false_negative: float = 0.0
    seed: int = 0

    def __post_init__(self):
        """Check every field."""
        check_interval(self, "false_positive", "false_negative", low=0.0, high=1.0)
        check_interval(self, "seed", low=0)
        if not self._is_on:
            reason = "nothing reads it while false_positive and false_negative are 0"
            check_unread(self, "seed", because=reason)

    @property
    def _is_on(self) -> bool:
        return self.false_positive > 0.0 or self.false_negative > 0.0

    def build(self) -> Link | None:
        """The link, or None where nothing flips."""
        if not self._is_on:
            return None
        parts = []
        if self.false_positive > 0.0:
            share = f"{100 * self.false_positive:.3g}%"
            parts.append(f"{share} of wrong responses were rewarded as right")
        if self.false_negative > 0.0:
            share = f"{100 * self.false_negative:.3g}%"
            parts.append(f"{share} of right responses were rewarded as wrong")
        return Link(self._apply, self._range, "; ".join(parts))

    def _apply(self, rewards: np.ndarray, scored: Scored) -> np.ndarray:
        low, high = self._range(scored.range)
        uniform = generator(self.seed, _STREAM, scored).random(len(rewards))
        below = rewards < 0.5 * (low + high)
        raised = np.where(below & (uniform < self.false_positive), np.float32(high), rewards)
        return np.where(~below & (uniform < self.false_negative), np.float32(low), raised)

    def _range(self, bounds: Range | None) -> Range:
        chances = f"false_positive {self.false_positive} and false_negative {self.false_negative}"
        if bounds is None:
            raise ValueError(
                f"rewards.flip has {chances}; it needs a task with a declared range of rewards, "
                "and no range is declared"
            )
        if not bounds[0] < bounds[1]:
            raise ValueError(
                f"rewards.flip has {chances}; it needs a range of rewards whose low end is below "
                f"its high end, and the range is {bounds}"
            )
        return bounds
