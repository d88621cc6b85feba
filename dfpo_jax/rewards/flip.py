"""Flipped verdicts: wrong responses rewarded as right, right ones as wrong."""

from dataclasses import dataclass

import numpy as np

from dfpo_jax.rewards.interface import (
    Link,
    Range,
    Scored,
    check_two_ends,
    generator,
    prompt_uniform,
)
from dfpo_jax.settings import check_choice, check_interval, check_unread

_STREAM = 0
_WORDS = {
    "response": "{share} of {kind} responses were rewarded as {other}",
    "group": "{kind} responses to {share} of the prompts, drawn anew in every iteration, were "
    "rewarded as {other}",
    "prompt": "{kind} responses to {share} of the prompts, always the same ones, were rewarded as "
    "{other}",
}


@dataclass(frozen=True)
class Flip:
    """With m the midpoint of the range [low, high] of the rewards that come in:

      r < m   becomes high with probability `false_positive`,
      r >= m  becomes low with probability `false_negative`.

    Fresh flips of single responses average out; flips that a whole group shares leave no variance
    within it, and flips that a prompt keeps are wrong labels. The model is ours.

    Attributes:
      false_positive: probability in [0, 1].
      false_negative: probability in [0, 1].
      seed: >= 0.
      unit: what has one draw: "response"; "group", all responses to a prompt in an iteration; or
        "prompt", all responses to a prompt in the whole run, by a hash of its text. With two
        probabilities p <= q one draw u < p flips both kinds, p <= u < q only that of q.

    Raises:
      ValueError: a field is outside its range, or a seed is set and nothing flips.
    """

    false_positive: float = 0.0
    false_negative: float = 0.0
    seed: int = 0
    unit: str = "response"

    def __post_init__(self):
        """Check every field."""
        check_choice(self, "unit", tuple(_WORDS))
        check_interval(self, "false_positive", "false_negative", low=0.0, high=1.0)
        check_interval(self, "seed", low=0)
        if not self._is_on:
            reason = "nothing reads it while false_positive and false_negative are 0"
            check_unread(self, "seed", "unit", because=reason)

    @property
    def _is_on(self) -> bool:
        return self.false_positive > 0.0 or self.false_negative > 0.0

    def build(self) -> Link | None:
        """The link, or None where nothing flips."""
        if not self._is_on:
            return None
        words = [
            _WORDS[self.unit].format(share=f"{100 * rate:.3g}%", kind=kind, other=other)
            for rate, kind, other in (
                (self.false_positive, "wrong", "right"),
                (self.false_negative, "right", "wrong"),
            )
            if rate > 0.0
        ]
        return Link(self._apply, self._range, "; ".join(words))

    def _apply(self, rewards: np.ndarray, scored: Scored) -> np.ndarray:
        low, high = self._range(scored.range)
        if self.unit == "response":
            uniform = generator(self.seed, _STREAM, scored).random(len(rewards))
        else:
            fresh = self.unit == "group"
            uniform = prompt_uniform(self.seed, _STREAM, scored, fresh=fresh)
        below = rewards < 0.5 * (low + high)
        raised = np.where(below & (uniform < self.false_positive), np.float32(high), rewards)
        return np.where(~below & (uniform < self.false_negative), np.float32(low), raised)

    def _range(self, bounds: Range | None) -> Range:
        chances = f"false_positive {self.false_positive} and false_negative {self.false_negative}"
        return check_two_ends(bounds, f"rewards.flip has {chances}")
