"""A penalty on responses that come close to the length limit."""

from dataclasses import dataclass

import numpy as np

from dfpo_jax.rewards.interface import LARGEST, Link, Range, Scored
from dfpo_jax.settings import check_interval, check_unread


@dataclass(frozen=True)
class Length:
    """Soft overlong punishment (DAPO, arXiv 2503.14476, equation 13).

    A response of L tokens with the limit R = max_new_tokens and buffer C gets, added to its reward,
    scale * min(0, (R - C - L) / C): 0 up to R - C tokens, -scale at the limit.

    Attributes:
      buffer: C in tokens, at most R; 0 for no penalty.
      scale: in units of reward, >= 0.

    Raises:
      ValueError: a field is outside its range, or a scale is set and there is no buffer.
    """

    buffer: int = 0
    scale: float = 1.0

    def __post_init__(self):
        """Check every field."""
        check_interval(self, "buffer", low=0)
        check_interval(self, "scale", low=0.0, high=LARGEST)
        if self.buffer == 0:
            check_unread(self, "scale", because="nothing reads it while buffer is 0")

    def build(self) -> Link | None:
        """The link, or None where there is no penalty."""
        if self.buffer == 0:
            return None
        words = (
            f"responses within {self.buffer} tokens of the length limit lost up to {self.scale:.3g}"
        )
        return Link(self._apply, self._range, words)

    def _apply(self, rewards: np.ndarray, scored: Scored) -> np.ndarray:
        excess = np.asarray(scored.lengths, np.float32) - (scored.limit - self.buffer)
        return rewards - np.float32(self.scale) * np.clip(excess / self.buffer, 0.0, 1.0)

    def _range(self, bounds: Range | None) -> Range | None:
        if bounds is None:
            return None
        # In float32 as above, so that rounding puts no reward below the low end.
        return float(np.float32(bounds[0]) - np.float32(self.scale)), bounds[1]
