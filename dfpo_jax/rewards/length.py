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
      buffer: C in tokens, at most R; 0 for no penalty, or for that of `share`.
      scale: in units of reward, >= 0.
      share: C as a share of R, in [0, 1]; 0 for no penalty, or for that of `buffer`. DAPO's 4096
        tokens of 20480 are 0.2.

    Raises:
      ValueError: a field is outside its range, both buffer and share are set, or a scale is set and
        neither is.
    """

    buffer: int = 0
    scale: float = 1.0
    share: float = 0.0

    def __post_init__(self):
        """Check every field."""
        check_interval(self, "buffer", low=0)
        check_interval(self, "share", low=0.0, high=1.0)
        check_interval(self, "scale", low=0.0, high=LARGEST)
        if self.buffer > 0:
            check_unread(self, "share", because=f"buffer is {self.buffer}, which replaces it")
        if not self._is_on:
            check_unread(self, "scale", because="nothing reads it while buffer and share are 0")

    @property
    def _is_on(self) -> bool:
        return self.buffer > 0 or self.share > 0.0

    def build(self) -> Link | None:
        """The link, or None where there is no penalty."""
        if not self._is_on:
            return None
        where = f"within {self.buffer} tokens of the length limit"
        if self.share > 0.0:
            where = f"in the last {100 * self.share:.3g}% of the length limit"
        words = f"responses {where} lost up to {self.scale:.3g}"
        return Link(self._apply, self._range, words, clean=lambda bounds: bounds)

    def _apply(self, rewards: np.ndarray, scored: Scored) -> np.ndarray:
        buffer = np.float32(self.buffer or self.share * scored.limit)
        # In this order a response at the limit loses exactly `scale`.
        excess = np.asarray(scored.lengths, np.float32) - scored.limit + buffer
        return rewards - np.float32(self.scale) * np.clip(excess / buffer, 0.0, 1.0)

    def _range(self, bounds: Range | None) -> Range | None:
        if bounds is None:
            return None
        # In float32 as above, so that rounding puts no reward below the low end.
        return float(np.float32(bounds[0]) - np.float32(self.scale)), bounds[1]
