"""Relabelling by the majority of a prompt's responses."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dfpo_jax.rewards.interface import Link, Range, Scored, check_two_ends
from dfpo_jax.settings import check_interval


@dataclass(frozen=True)
class Majority:
    """The majority answer of a prompt's responses becomes its label, where enough of them agree.

    Of the n >= 2 responses to a prompt in a round, let a be the answer (see `Task.answer`) that
    most of them give, alone in first place, and s the share of the n that give it; a response
    without an answer counts in n alone. Where s >= threshold, a response gets the high end of the
    range of rewards if its answer is a, else the low end. Elsewhere the verdicts stay. Answers are
    compared as texts, so "1/2" and "0.5" differ.

    After OLR (arXiv 2604.03993), which we know from its abstract alone: it replaces a label by the
    majority answer "when its rollout pass rate rises and it was historically stable". Reconstructed
    (ours) are the comparison of answers, ties and the threshold. Left out is the history: a link
    keeps no state from one iteration to the next, so that a resumed run has the same rewards, and
    the agreement of one round stands for stability.

    Attributes:
      threshold: least share of the responses that agree, in (0, 1]; 0 for no relabelling.

    Raises:
      ValueError: the threshold is outside its range.
    """

    threshold: float = 0.0

    def __post_init__(self):
        """Check the threshold."""
        check_interval(self, "threshold", low=0.0, high=1.0)

    def build(self) -> Link | None:
        """The link, or None where labels stay."""
        if self.threshold == 0.0:
            return None
        share = f"{100 * self.threshold:.3g}%"
        words = f"answers that at least {share} of a prompt's responses gave were rewarded as right"
        return Link(self._apply, self._range, words)

    def _apply(self, rewards: np.ndarray, scored: Scored) -> np.ndarray:
        low, high = map(np.float32, self._range(scored.range))
        found, rows = rewards.copy(), {}
        for row, item in enumerate(scored.items):
            rows.setdefault(item.prompt, []).append(row)
        for group in rows.values():
            answers = [scored.read(scored.items[row], scored.texts[row]) for row in group]
            label = self._label(answers)
            if label is not None:
                found[group] = [high if answer == label else low for answer in answers]
        return found

    def _label(self, answers: Sequence[str | None]) -> str | None:
        """The answer on which enough responses agree, or None."""
        votes = Counter(answer for answer in answers if answer is not None).most_common(2)
        if len(answers) < 2 or not votes or (len(votes) == 2 and votes[0][1] == votes[1][1]):
            return None
        return votes[0][0] if votes[0][1] / len(answers) >= self.threshold else None

    def _range(self, bounds: Range | None) -> Range:
        return check_two_ends(bounds, f"rewards.majority has threshold {self.threshold}")
