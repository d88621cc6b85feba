"""Gaussian noise on rewards, of all prompts or of some."""

import re
from dataclasses import dataclass

import numpy as np

from dfpo_jax.rewards.interface import LARGEST, Link, Scored, generator, prompt_uniform
from dfpo_jax.settings import check_interval, check_unread

_STREAM = 1


@dataclass(frozen=True)
class Gaussian:
    """r + std * N(0, 1), on some prompts or on all.

    Attributes:
      std: standard deviation, in units of reward; 0 for no noise.
      seed: >= 0.
      share: of the prompts, those that have noise, in (0, 1]. A hash of the prompt's text decides,
        for the whole run, so nothing in a new prompt tells whether it has noise.
      pattern: "" or a regular expression; a prompt has noise where `re.search` finds it, such as
        "^[a-l]". Then a critic can learn which prompts have noise.

    Raises:
      ValueError: a field is outside its range, a setting is set and there is no noise, or both
        `share` and `pattern` are set.
    """

    std: float = 0.0
    seed: int = 0
    share: float = 1.0
    pattern: str = ""

    def __post_init__(self):
        """Check every field."""
        check_interval(self, "std", low=0.0, high=LARGEST)
        check_interval(self, "seed", low=0)
        check_interval(self, "share", low=0.0, high=1.0)
        if self.share == 0.0:
            raise ValueError("share is 0.0; it must be above 0, as no prompt would have noise")
        if self.std == 0.0:
            because = "nothing reads it while std is 0"
            check_unread(self, "seed", "share", "pattern", because=because)
        if self.pattern:
            because = f"pattern is {self.pattern!r}, which decides which prompts have noise"
            check_unread(self, "share", because=because)
        try:
            re.compile(self.pattern)
        except re.error as error:
            found = f"pattern is {self.pattern!r}, not a regular expression: {error}"
            raise ValueError(found) from error

    def build(self) -> Link | None:
        """The link, or None where there is no noise. No bound holds for what it gives."""
        if self.std == 0.0:
            return None
        words = f"Gaussian noise of standard deviation {self.std:.3g} was added"
        if self.share < 1.0:
            words = f"{words} on {100 * self.share:.3g}% of the prompts"
        elif self.pattern:
            words = f"{words} on the prompts that match {self.pattern!r}"
        return Link(self._apply, lambda bounds: None, words)

    def _apply(self, rewards: np.ndarray, scored: Scored) -> np.ndarray:
        normal = generator(self.seed, _STREAM, scored).standard_normal(len(rewards))
        noise = (self.std * normal).astype(np.float32)
        return rewards + np.where(self._is_noisy(scored), noise, np.float32(0.0))

    def _is_noisy(self, scored: Scored) -> np.ndarray:
        """[B] whether each response's prompt has noise."""
        if not self.pattern and self.share == 1.0:
            return np.ones(len(scored.items), bool)
        if self.pattern:
            found = [re.search(self.pattern, item.prompt) is not None for item in scored.items]
            return np.array(found, bool)
        return prompt_uniform(self.seed, _STREAM, scored, fresh=False) < self.share
