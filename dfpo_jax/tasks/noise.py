"""Reward corruption: flipped verdicts, Gaussian noise and heavy-tailed spikes.

Corruptors stand between the verifier and the learner, so that a run can be trained on noisy
rewards and judged on clean ones.
"""

import dataclasses
import math

import numpy as np

_TAG = 0x6E6F6973  # "nois": keeps these random streams apart from those that draw prompts
_FLIP, _GAUSSIAN, _SPIKE, _SPIKE_SIZE = range(4)


@dataclasses.dataclass(frozen=True)
class RewardNoise:
    """A reward corruptor; the default leaves rewards as they are.

    With r the clean reward and m the midpoint of its range [low, high], in this order:

      flip      r < m becomes high with probability `false_positive`,
                r >= m becomes low with probability `false_negative`
      Gaussian  r + gaussian_std * N(0, 1)
      spike     with probability `spike_probability`,
                r + clip(spike_scale * t(spike_df), -spike_cut, spike_cut)

    where t(df) is Student's t; with df <= 2 its variance is infinite before the clip. The model is
    ours.

    Attributes:
      false_positive: probability in [0, 1].
      false_negative: probability in [0, 1].
      gaussian_std: standard deviation, in units of reward, >= 0.
      spike_probability: probability in [0, 1].
      spike_df: degrees of freedom, > 0.
      spike_scale: scale of a spike, in units of reward, > 0.
      spike_cut: largest size of a spike, in units of reward, > 0.
      seed: >= 0.

    Raises:
      ValueError: a field is outside its range; the message names it.
    """

    false_positive: float = 0.0
    false_negative: float = 0.0
    gaussian_std: float = 0.0
    spike_probability: float = 0.0
    spike_df: float = 1.5
    spike_scale: float = 2.0
    spike_cut: float = 20.0
    seed: int = 0

    def __post_init__(self):
        """Checks every field."""
        for name in ("false_positive", "false_negative", "spike_probability"):
            _require(name, getattr(self, name), lambda x: 0.0 <= x <= 1.0, "a number in [0, 1]")
        _require("gaussian_std", self.gaussian_std, lambda x: x >= 0.0, "a finite number >= 0")
        for name in ("spike_df", "spike_scale", "spike_cut"):
            _require(name, getattr(self, name), lambda x: x > 0.0, "a finite number > 0")
        _require("seed", self.seed, lambda x: x >= 0 and x == int(x), "an integer >= 0")

    def apply(self, clean: np.ndarray, step: int, low: float, high: float) -> np.ndarray:
        """Corrupts the rewards of one iteration.

        A pure function of (seed, step, position in the batch); `clean` is not modified.

        Args:
          clean: [B] rewards.
          step: iteration, >= 0.
          low: lowest clean reward.
          high: highest clean reward.

        Returns:
          [B] float32 rewards.

        Raises:
          ValueError: `clean` is not a vector, `low >= high`, or `step < 0`.
        """
        rewards = np.array(clean, np.float32)
        if rewards.ndim != 1:
            raise ValueError(f"clean has shape {rewards.shape}; it must be [batch]")
        if not low < high:
            raise ValueError(f"low={low} must be below high={high}")
        if step < 0:
            raise ValueError(f"step={step} must be >= 0")
        size = rewards.size
        if self.false_positive > 0.0 or self.false_negative > 0.0:
            uniform = self._generator(step, _FLIP).random(size)
            below = rewards < 0.5 * (low + high)
            rewards[below & (uniform < self.false_positive)] = high
            rewards[~below & (uniform < self.false_negative)] = low
        if self.gaussian_std > 0.0:
            normal = self._generator(step, _GAUSSIAN).standard_normal(size)
            rewards += (self.gaussian_std * normal).astype(np.float32)
        if self.spike_probability > 0.0:
            hit = self._generator(step, _SPIKE).random(size) < self.spike_probability
            heavy = self._generator(step, _SPIKE_SIZE).standard_t(self.spike_df, size)
            spike = np.clip(self.spike_scale * heavy, -self.spike_cut, self.spike_cut)
            rewards += np.where(hit, spike, 0.0).astype(np.float32)
        return rewards

    def reward_range(self, low: float, high: float) -> tuple[float, float] | None:
        """The range of corrupted rewards: (low, high) with flips only, None once it is unbounded.

        Spikes alone have bounds, but ones too wide to be of use, and count as unbounded.
        """
        if self.gaussian_std > 0.0 or self.spike_probability > 0.0:
            return None
        return (low, high)

    def _generator(self, step: int, part: int) -> np.random.Generator:
        # One stream per part, so that entry i does not depend on the batch size nor on which other
        # parts are switched on.
        return np.random.default_rng([self.seed, _TAG, step, part])


def _require(name: str, value: float, holds, allowed: str) -> None:
    if not (math.isfinite(value) and holds(value)):
        raise ValueError(f"{name}={value!r} must be {allowed}")
