"""Rewards replaced by their ranks."""

from dataclasses import dataclass

import numpy as np

from dfpo_jax.rewards.interface import Link, Range, Scored
from dfpo_jax.settings import check_choice


@dataclass(frozen=True)
class Rank:
    """(number below - number above) / (n - 1) of n rewards: in [-1, 1], equal ones at their middle.

    No outlier reaches the learner, and no scale has to be known: the rival to which an advantage of
    ranks compares (ours). One reward alone becomes 0.

    Attributes:
      within: of which rewards the rank is: "" for none (rewards stay), "batch" for all responses of
        a round, "group" for those to the same prompt in it.

    Raises:
      ValueError: another name.
    """

    within: str = ""

    def __post_init__(self):
        """Check the name."""
        check_choice(self, "within", ("", "batch", "group"))

    def build(self) -> Link | None:
        """The link, or None where rewards stay."""
        if not self.within:
            return None
        which = {"batch": "all responses of a round", "group": "the responses to a prompt"}
        words = f"rewards became ranks from -1 to 1 among {which[self.within]}"
        return Link(self._apply, self._range, words)

    def _apply(self, rewards: np.ndarray, scored: Scored) -> np.ndarray:
        if self.within == "batch":
            return _ranks(rewards)
        _, group = np.unique([item.prompt for item in scored.items], return_inverse=True)
        found = np.zeros_like(rewards)
        for number in range(group.max(initial=-1) + 1):
            rows = group == number
            found[rows] = _ranks(rewards[rows])
        return found

    def _range(self, bounds: Range | None) -> Range:
        return (0.0, 0.0) if bounds is not None and bounds[0] == bounds[1] else (-1.0, 1.0)


def _ranks(rewards: np.ndarray) -> np.ndarray:
    """[n] float32 -> [n] float32 in [-1, 1]."""
    _, place, counts = np.unique(rewards, return_inverse=True, return_counts=True)
    below = np.cumsum(counts) - counts
    above = len(rewards) - below - counts
    return ((below - above)[place] / max(len(rewards) - 1, 1)).astype(np.float32)
