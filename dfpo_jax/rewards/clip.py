"""Rewards cut to an interval around 0."""

from dataclasses import dataclass

import numpy as np

from dfpo_jax.rewards.interface import LARGEST, Link, Range, Scored
from dfpo_jax.settings import check_interval


@dataclass(frozen=True)
class Clip:
    """clip(r, -bound, bound).

    Attributes:
      bound: in units of reward; 0 for no clip.

    Raises:
      ValueError: the bound is outside its range.
    """

    bound: float = 0.0

    def __post_init__(self):
        """Check the bound."""
        check_interval(self, "bound", low=0.0, high=LARGEST)

    def build(self) -> Link | None:
        """The link, or None where there is no clip."""
        if self.bound == 0.0:
            return None
        return Link(self._apply, self._range, f"rewards were clipped at \u00b1{self.bound:.3g}")

    def _apply(self, rewards: np.ndarray, scored: Scored) -> np.ndarray:
        return np.clip(rewards, np.float32(-self.bound), np.float32(self.bound))

    def _range(self, bounds: Range | None) -> Range:
        if bounds is None:
            return -self.bound, self.bound
        low, high = max(bounds[0], -self.bound), min(bounds[1], self.bound)
        if bounds[0] < bounds[1] and not low < high:
            raise ValueError(
                f"rewards.clip.bound is {self.bound}; rewards lie in {bounds}, so that all of them "
                "would be equal; it must cut inside that range"
            )
        return low, high
