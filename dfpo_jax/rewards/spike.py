"""Heavy-tailed spikes on some rewards."""

from dataclasses import dataclass

import numpy as np

from dfpo_jax.rewards.interface import LARGEST, Link, Scored, generator
from dfpo_jax.settings import check_interval, check_unread

_HIT, _SIZE = 2, 3  # streams
_LEAST_DF = 1e-3  # far below it numpy's t is not a number


@dataclass(frozen=True)
class Spike:
    """With `probability`, r + clip(scale * t(df), -cut, cut).

    t(df) is Student's t; with df <= 2 its variance is infinite before the clip. The model is ours.

    Attributes:
      probability: in [0, 1]; 0 for no spikes.
      df: degrees of freedom, >= 0.001.
      scale: of a spike, in units of reward, > 0.
      cut: largest size of a spike, in units of reward, > 0.
      seed: >= 0.

    Raises:
      ValueError: a field is outside its range, or differs from its default and there are no spikes.
    """

    probability: float = 0.0
    df: float = 1.5
    scale: float = 2.0
    cut: float = 20.0
    seed: int = 0

    def __post_init__(self):
        """Check every field."""
        check_interval(self, "probability", low=0.0, high=1.0)
        check_interval(self, "df", low=_LEAST_DF, high=LARGEST)
        check_interval(self, "scale", "cut", low=1 / LARGEST, high=LARGEST)
        check_interval(self, "seed", low=0)
        if self.probability == 0.0:
            reason = "nothing reads it while probability is 0"
            check_unread(self, "df", "scale", "cut", "seed", because=reason)

    def build(self) -> Link | None:
        """The link, or None where there are no spikes.

        What it gives has bounds, but ones too wide to be of use, and counts as unbounded.
        """
        if self.probability == 0.0:
            return None
        words = (
            f"{100 * self.probability:.3g}% of rewards got a heavy-tailed spike, "
            f"{self.scale:.3g} times a Student t with {self.df:.3g} degrees of freedom, "
            f"cut at \u00b1{self.cut:.3g}"
        )
        return Link(self._apply, lambda bounds: None, words)

    def _apply(self, rewards: np.ndarray, scored: Scored) -> np.ndarray:
        size = len(rewards)
        hit = generator(self.seed, _HIT, scored).random(size) < self.probability
        heavy = generator(self.seed, _SIZE, scored).standard_t(self.df, size)
        spike = np.clip(self.scale * heavy, -self.cut, self.cut)
        return rewards + np.where(hit, spike, 0.0).astype(np.float32)
