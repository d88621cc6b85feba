"""Gaussian noise on rewards."""

from dataclasses import dataclass

import numpy as np

from dfpo_jax.rewards.interface import LARGEST, Link, Scored, generator
from dfpo_jax.settings import check_interval, check_unread

_STREAM = 1


@dataclass(frozen=True)
class Gaussian:
    """r + std * N(0, 1).

    Attributes:
      std: standard deviation, in units of reward; 0 for no noise.
      seed: >= 0.

    Raises:
      ValueError: a field is outside its range, or a seed is set and there is no noise.
    """

    std: float = 0.0
    seed: int = 0

    def __post_init__(self):
        """Check every field."""
        check_interval(self, "std", low=0.0, high=LARGEST)
        check_interval(self, "seed", low=0)
        if self.std == 0.0:
            check_unread(self, "seed", because="nothing reads it while std is 0")

    def build(self) -> Link | None:
        """The link, or None where there is no noise. No bound holds for what it gives."""
        if self.std == 0.0:
            return None
        words = f"Gaussian noise of standard deviation {self.std:.3g} was added"
        return Link(self._apply, lambda bounds: None, words)

    def _apply(self, rewards: np.ndarray, scored: Scored) -> np.ndarray:
        normal = generator(self.seed, _STREAM, scored).standard_normal(len(rewards))
        return rewards + (self.std * normal).astype(np.float32)
