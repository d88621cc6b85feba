"""Rewards on a scale that is linear near 0 and logarithmic far from it."""

from dataclasses import dataclass

import numpy as np

from dfpo_jax.rewards.interface import LARGEST, Link, Range, Scored
from dfpo_jax.settings import check_interval


@dataclass(frozen=True)
class Squash:
    """scale * asinh(r / scale): increasing, with slope 1 at 0; a control for heavy tails (ours).

    It changes what is best where returns are random: the mean of squashed rewards is maximised. A
    critic whose value *units* are asinh keeps the mean of the rewards themselves.

    Attributes:
      scale: in units of reward, where rewards begin to count logarithmically; 0 for no squash.

    Raises:
      ValueError: the scale is outside its range.
    """

    scale: float = 0.0

    def __post_init__(self):
        """Check the scale."""
        check_interval(self, "scale", low=0.0, high=LARGEST)
        if 0.0 < self.scale < 1 / LARGEST:
            raise ValueError(
                f"scale is {self.scale}; it must be 0, or lie in [{1 / LARGEST:g}, {LARGEST:g}]"
            )

    def build(self) -> Link | None:
        """The link, or None where rewards are left alone."""
        if self.scale == 0.0:
            return None
        words = f"rewards became {self.scale:.3g} asinh(reward / {self.scale:.3g})"
        return Link(self._apply, self._range, words)

    def _apply(self, rewards: np.ndarray, scored: Scored) -> np.ndarray:
        # In float64: a small scale makes the quotient too large for float32.
        scaled = np.asarray(rewards, np.float64) / self.scale
        return (self.scale * np.arcsinh(scaled)).astype(np.float32)

    def _range(self, bounds: Range | None) -> Range | None:
        if bounds is None:
            return None
        low, high = self._apply(np.array(bounds, np.float32), None)
        return float(low), float(high)
