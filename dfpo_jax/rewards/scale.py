"""Rewards times a number."""

from dataclasses import dataclass

import numpy as np

from dfpo_jax.rewards.interface import LARGEST, Link, Range, Scored
from dfpo_jax.settings import check_interval


@dataclass(frozen=True)
class Scale:
    """factor * r.

    Attributes:
      factor: above 0; 1 leaves rewards alone.

    Raises:
      ValueError: the factor is outside its range.
    """

    factor: float = 1.0

    def __post_init__(self):
        """Check the factor."""
        check_interval(self, "factor", low=0.0, high=LARGEST)
        if self.factor == 0.0:
            raise ValueError("factor is 0.0; it must be above 0, as all rewards would be equal")

    def build(self) -> Link | None:
        """The link, or None where rewards are left alone."""
        if self.factor == 1.0:
            return None
        words = f"rewards were multiplied by {self.factor:.3g}"
        return Link(self._apply, self._range, words, unit=self.factor)

    def _apply(self, rewards: np.ndarray, scored: Scored) -> np.ndarray:
        return rewards * np.float32(self.factor)

    def _range(self, bounds: Range | None) -> Range | None:
        if bounds is None:
            return None
        # In float32 as above, so that rounding puts no reward outside.
        return tuple(float(np.float32(end) * np.float32(self.factor)) for end in bounds)
