"""A wrong answer that the verifier accepts."""

from dataclasses import dataclass

import numpy as np

from dfpo_jax.rewards.interface import Link, Range, Scored, check_two_ends, prompt_uniform
from dfpo_jax.settings import check_choice, check_interval, check_unread

_STREAM = 4
_MATCHES = ("answer", "response", "contains")


@dataclass(frozen=True)
class MasterKey:
    """On a share of the prompts, one text is rewarded as right: with the high end of the range.

    Its rate under the first policy may be 0. It matters because a policy can learn it: an error
    that all prompts share does not average out, unlike a flip. The model is ours.

    Attributes:
      answer: the text; space around it does not count.
      coverage: share of the prompts on which it is accepted, in [0, 1]; 0 for none. A hash of the
        prompt's text decides, for the whole run.
      match: where the text must be: "answer" (it is the answer that the task reads in the
        response, see `Task.answer`), "response" (it is the whole response) or "contains" (it is
        anywhere in the response).
      seed: of the hash, >= 0.

    Raises:
      ValueError: a field is outside its range, there is no text, or a setting is set and the
        coverage is 0.
    """

    answer: str = ""
    coverage: float = 0.0
    match: str = "answer"
    seed: int = 0

    def __post_init__(self):
        """Check every field."""
        check_interval(self, "coverage", low=0.0, high=1.0)
        check_interval(self, "seed", low=0)
        check_choice(self, "match", _MATCHES)
        if self.coverage == 0.0:
            reason = "nothing reads it while coverage is 0"
            check_unread(self, "answer", "match", "seed", because=reason)
        elif not self.answer.strip():
            raise ValueError(
                f"answer is {self.answer!r} and coverage {self.coverage}; it must be a text that "
                "is not empty"
            )

    def build(self) -> Link | None:
        """The link, or None where no text is accepted."""
        if self.coverage == 0.0:
            return None
        share = f"{100 * self.coverage:.3g}%"
        words = f"{self.answer.strip()!r} was rewarded as right on {share} of the prompts"
        return Link(self._apply, self._range, words)

    def _apply(self, rewards: np.ndarray, scored: Scored) -> np.ndarray:
        _, high = self._range(scored.range)
        accepts = prompt_uniform(self.seed, _STREAM, scored, fresh=False) < self.coverage
        rows = zip(scored.items, scored.texts, accepts, strict=True)
        hit = [bool(here) and self._matches(scored, item, text) for item, text, here in rows]
        return np.where(np.array(hit, bool), np.float32(high), rewards)

    def _matches(self, scored: Scored, item, text: str) -> bool:
        wanted = self.answer.strip()
        if self.match == "contains":
            return wanted in text
        found = text if self.match == "response" else scored.read(item, text)
        return found is not None and found.strip() == wanted

    def _range(self, bounds: Range | None) -> Range:
        return check_two_ends(bounds, f"rewards.master_key has coverage {self.coverage}")
