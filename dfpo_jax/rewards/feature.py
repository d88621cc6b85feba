"""A bonus on a surface feature of responses."""

from dataclasses import dataclass

import numpy as np

from dfpo_jax.rewards.interface import LARGEST, Link, Range, Scored
from dfpo_jax.settings import check_choice, check_interval, check_unread

_KINDS = ("contains", "count", "length")


@dataclass(frozen=True)
class Feature:
    """r + bonus * f, where f in [0, 1] says how much a response shows a feature; ours.

    It stands for what a learned reward model likes besides the truth, such as length or a phrase.

    Attributes:
      bonus: in units of reward; below 0 for a feature that is disliked, 0 for none.
      kind: what f is: "contains" (1 if `text` is in the response, else 0), "count" (how often it is
        there, without overlap, as a share of `most`, at most 1) or "length" (tokens, as a share of
        the limit).
      text: of "contains" and "count", as it stands, space included.
      most: of "count", >= 1.

    Raises:
      ValueError: a field is outside its range, there is no text where one is read, or a setting is
        set that nothing reads.
    """

    bonus: float = 0.0
    kind: str = "contains"
    text: str = ""
    most: int = 1

    def __post_init__(self):
        """Check every field."""
        check_interval(self, "bonus", low=-LARGEST, high=LARGEST)
        check_interval(self, "most", low=1)
        check_choice(self, "kind", _KINDS)
        if self.bonus == 0.0:
            reason = "nothing reads it while bonus is 0"
            check_unread(self, "kind", "text", "most", because=reason)
            return
        if self.kind != "count":
            check_unread(self, "most", because=f"kind is {self.kind!r}")
        if self.kind == "length":
            check_unread(self, "text", because=f"kind is {self.kind!r}")
        elif not self.text:
            raise ValueError(f"text is ''; kind is {self.kind!r}, so it must be a text")

    def build(self) -> Link | None:
        """The link, or None where no feature is rewarded."""
        if self.bonus == 0.0:
            return None
        shown = {
            "contains": f"that contained {self.text!r}",
            "count": f"that contained {self.text!r} {self.most} times or more",
            "length": "at the length limit",
        }[self.kind]
        part = "" if self.kind == "contains" else ", others a share of it"
        words = f"responses {shown} got {self.bonus:+.3g}{part}"
        return Link(self._apply, self._range, words, clean=lambda bounds: bounds)

    def _apply(self, rewards: np.ndarray, scored: Scored) -> np.ndarray:
        if self.kind == "length":
            shown = np.asarray(scored.lengths, np.float32) / np.float32(scored.limit)
        else:
            counts = [text.count(self.text) for text in scored.texts]
            most = 1 if self.kind == "contains" else self.most
            shown = np.minimum(np.array(counts, np.float32), most) / np.float32(most)
        return rewards + np.float32(self.bonus) * shown

    def _range(self, bounds: Range | None) -> Range | None:
        if bounds is None:
            return None
        # In float32 as above, so that rounding puts no reward outside.
        low, high = np.float32(bounds[0]), np.float32(bounds[1])
        bonus = np.float32(self.bonus)
        return float(min(low, low + bonus)), float(max(high, high + bonus))
