"""The correction of a verifier's known error rates."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dfpo_jax import ops
from dfpo_jax.rewards.interface import Link, Range, Scored
from dfpo_jax.settings import check_choice, check_interval, check_unread
from dfpo_jax.tasks.base import Item
from dfpo_jax.tasks.fields import column


@dataclass(frozen=True)
class Correction:
    """Rewards as an errorless verifier would give them on average (arXiv 2510.00915).

    Of a reward r in [low, high], the range of the rewards that come in, it makes
    low + (high - low) c((r - low) / (high - low)), where c is `ops.corrected_rewards`. The rates
    are those of the rewards that come in: of the verifier and of `flip` together.

    For prompts with one pair of rates this is one increasing affine function: advantages that are
    whitened over them, or normalised by group, do not change with it. It has an effect where
    advantages of prompts with different rates are whitened together, where they are not normalised
    (a factor on the learning rate, of each prompt), and beside a KL in the reward.

    Attributes:
      false_positive: rho0, the probability that a wrong response is rewarded as right, in [0, 1].
      false_negative: rho1, the probability that a right response is rewarded as wrong, in [0, 1];
        J = 1 - rho0 - rho1 must be above 0.
      false_positive_column: "" or the column of the data set that holds rho0 of each prompt.
      false_negative_column: "" or the column that holds its rho1.
      kind: "backward", whose range is low + (high - low) times -rho0 / J to (1 - rho0) / J; or
        "forward", with rho1 - 1 to rho1, for which rho0 need not be known and must be left out.

    Raises:
      ValueError: a field is outside its range, J is not above 0, a rate is set twice, or a setting
        is set that nothing reads.
    """

    false_positive: float = 0.0
    false_negative: float = 0.0
    false_positive_column: str = ""
    false_negative_column: str = ""
    kind: str = "backward"

    def __post_init__(self):
        """Check every field."""
        check_interval(self, "false_positive", "false_negative", low=0.0, high=1.0)
        check_choice(self, "kind", ops.CORRECTIONS)
        for name in ("false_positive", "false_negative"):
            if found := getattr(self, f"{name}_column"):
                check_unread(self, name, because=f"{name}_column is {found!r}, which replaces it")
        if not self._is_on:
            check_unread(self, "kind", because="nothing reads it while no rate is set")
        if self.kind == "forward":
            because = "kind is 'forward', which reads false negatives alone"
            check_unread(self, "false_positive", "false_positive_column", because=because)
        _check_rates(self.false_positive, self.false_negative)

    @property
    def _is_on(self) -> bool:
        return self.false_positive > 0.0 or self.false_negative > 0.0 or self._by_prompt

    @property
    def _by_prompt(self) -> bool:
        return bool(self.false_positive_column or self.false_negative_column)

    def build(self, items: Sequence[Item] = ()) -> Link | None:
        """The link, or None where nothing is corrected.

        Args:
          items: all of the task's prompts, which decide the range where rates differ by prompt.

        Raises:
          ValueError: a prompt has no such column, or one that holds no rate; one line.
        """
        if not self._is_on:
            return None
        if self._by_prompt:
            words = "the verifier's error rates were corrected prompt by prompt"
            return Link(self._apply, functools.partial(self._range, *self._rates(items)), words)
        rates = np.float32([self.false_positive]), np.float32([self.false_negative])
        words, unit = f"{100 * self.false_negative:.3g}% false negatives", 1.0
        if self.kind == "backward":
            words = f"{100 * self.false_positive:.3g}% false positives and {words}"
            unit = 1.0 / (1.0 - self.false_positive - self.false_negative)
        words = f"{words} of the verifier were corrected"
        return Link(self._apply, functools.partial(self._range, *rates), words, unit)

    def _rates(self, items: Sequence[Item]) -> list[np.ndarray]:
        """rho0 and rho1 of each item, [N] float32 each."""
        found = []
        for name in ("false_positive", "false_negative"):
            here = getattr(self, f"{name}_column")
            fixed = getattr(self, name)
            setting = f"rewards.correction.{name}_column"
            rates = [_rate(item, here, setting) if here else fixed for item in items]
            found.append(np.array(rates, np.float32))
        for item, wrong, missed in zip(items, *found, strict=True):
            _check_rates(float(wrong), float(missed), f"prompt {item.prompt!r}: ")
        return found

    def _corrected(
        self, rewards: np.ndarray, bounds: Range, wrong: np.ndarray, missed: np.ndarray
    ) -> np.ndarray:
        low, span = np.float32(bounds[0]), np.float32(bounds[1]) - np.float32(bounds[0])
        found = ops.corrected_rewards(
            (rewards - low) / span, false_positive=wrong, false_negative=missed, kind=self.kind
        )
        return low + span * np.asarray(found)

    def _apply(self, rewards: np.ndarray, scored: Scored) -> np.ndarray:
        return self._corrected(rewards, scored.range, *self._rates(scored.items))

    def _range(self, wrong: np.ndarray, missed: np.ndarray, bounds: Range | None) -> Range | None:
        if bounds is None or not bounds[0] < bounds[1]:
            raise ValueError(
                f"rewards.correction acts on rewards whose range is {bounds}; it needs a known one "
                "whose low end is below its high end: a task that declares one, and no unbounded "
                "noise"
            )
        if len(wrong) == 0:
            return None
        # With the same float32 steps as above, so that rounding puts no reward outside.
        low, high = (
            self._corrected(np.full_like(wrong, end), bounds, wrong, missed) for end in bounds
        )
        return float(low.min()), float(high.max())


def _rate(item: Item, name: str, setting: str) -> float:
    """A rate in a column of an item's row."""
    value = column(item, name, setting)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
        raise ValueError(
            f"prompt {item.prompt!r}: column {name!r}, which {setting} names, is {value!r}; it "
            "must be a number in [0, 1]"
        )
    return float(value)


def _check_rates(wrong: float, missed: float, where: str = "") -> None:
    """Raise ValueError unless J is above 0."""
    if not wrong + missed < 1.0:
        raise ValueError(
            f"{where}false_positive is {wrong:.6g} and false_negative {missed:.6g}; their sum must "
            "be below 1, as such verdicts say nothing about a response, or the opposite"
        )
