"""A learned reward model of a chosen accuracy in place of the verifier."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dfpo_jax.rewards import classifier
from dfpo_jax.rewards.interface import Initial, Link, Range, Scored, Start, not_begun
from dfpo_jax.settings import check_choice, check_interval, check_unread

_LOG = logging.getLogger(__name__)
_TOLERANCE = 0.02  # of the accuracy reached
_CLOSE = 0.005  # near enough to try no further rate
_ATTEMPTS = 4
SCORES = ("probability", "logit")


@dataclass(frozen=True)
class Learned:
    """The score of a small classifier that reads the initial policy's own states (ours).

    Before the first iteration the classifier learns to tell right responses of the initial policy
    from wrong ones. A share of its labels is flipped. Bisection finds the share, from 0 to 1/2, at
    which the classifier is right `accuracy` of the time on responses to held-out prompts, which are
    every second one. Flipped labels were chosen over a shorter training: that would leave a
    classifier of the few features that are learned first, whereas flips also make it learn wrong
    directions, as a reward model that was fitted to noisy preferences has.

    Accuracy is that of right and of wrong responses, averaged: 1/2 is guessing, however often the
    policy is right.

    The classifier reads `algorithms.trunk.response_features`: hidden states, and how likely the
    initial policy finds the response. The run keeps a copy of that policy, which evaluates every
    new response, so a reward does not change with the policy; but the responses move away from
    those that the classifier was fitted to. Without the log-probabilities no accuracy of 0.72 can
    be reached on the small policies of this repository.

    Attributes:
      samples: responses of the initial policy to each of `prompts`, at the temperature of training;
        0 for the verifier's rewards.
      prompts: most prompts that are used, >= 2.
      accuracy: in [0.5, 1); reached within 0.02, or the run is refused.
      score: "probability", a reward in [0, 1], or "logit", an unbounded one.
      hidden: units of its hidden layer.
      seed: of the flips and the first weights, >= 0.

    Raises:
      ValueError: a field is outside its range, or set though samples is 0.
    """

    samples: int = 0
    prompts: int = 512
    accuracy: float = 0.72
    score: str = "probability"
    hidden: int = 32
    seed: int = 0

    def __post_init__(self):
        """Check every field."""
        check_interval(self, "samples", "seed", low=0)
        check_interval(self, "prompts", low=2)
        check_interval(self, "hidden", low=1)
        check_choice(self, "score", SCORES)
        if not 0.5 <= self.accuracy < 1.0:
            raise ValueError(f"accuracy is {self.accuracy}; it must lie in [0.5, 1)")
        if self.samples == 0:
            names = ("prompts", "accuracy", "score", "hidden", "seed")
            check_unread(self, *names, because="nothing reads it while samples is 0")

    def build(self) -> Link | None:
        """The link, or None where the verifier gives the rewards."""
        if self.samples == 0:
            return None
        settings = {name: value for name, value in asdict(self).items() if name != "score"}
        start = Start("learned", settings, self._make, self._begin)
        words = self._words(self.accuracy)
        return Link(not_begun, self._range, words, clean=self._clean, start=start)

    def _words(self, accuracy: float) -> str:
        return f"a learned reward model gave the rewards, right {100 * accuracy:.3g}% of the time"

    def _make(self, initial: Initial) -> dict[str, Any]:
        """The classifier's parameters, and figures of it on the held-out responses."""
        items = initial.items[: self.prompts]
        scored = initial.respond(items, self.samples)
        features = _states(scored)
        labels = scored.clean >= initial.task.solved_at
        held_out = np.arange(len(labels)) // self.samples % 2 == 1
        for part in (labels[held_out], labels[~held_out]):
            if part.all() or not part.any():
                raise ValueError(
                    f"rewards.learned: {int(labels.sum())} of {len(labels)} responses of the first "
                    "policy are right; both halves of the prompts need right and wrong ones, so "
                    "start from another policy or raise rewards.learned.prompts or samples"
                )
        parameters, rate, accuracy = self._fit(features, labels, held_out)
        if abs(accuracy - self.accuracy) > _TOLERANCE:
            raise ValueError(
                f"rewards.learned.accuracy is {self.accuracy}; on {int(held_out.sum())} held-out "
                f"responses the classifier is right {accuracy:.3f} of the time at the closest, "
                f"with {100 * rate:.3g}% of its labels flipped; set accuracy near that, or raise "
                "rewards.learned.prompts or samples"
            )
        found = classifier.logits(parameters, features[held_out])
        area = classifier.area(found, labels[held_out])
        _LOG.info(
            "learned reward model: right %.3f of the time on %d held-out responses, area under "
            "the curve %.3f, %.3g%% of its labels flipped",
            accuracy,
            held_out.sum(),
            area,
            100 * rate,
        )
        figures = {"corruption": rate, "accuracy": accuracy, "area": area}
        return {"parameters": parameters, **figures}

    def _fit(
        self, features: np.ndarray, labels: np.ndarray, held_out: np.ndarray
    ) -> tuple[dict[str, Any], float, float]:
        """The classifier's parameters, the share of flipped labels, and its accuracy.

        On few responses the accuracy jumps from rate to rate. Where no rate comes close, other
        labels are flipped.
        """
        best = ({}, 0.0, -1.0)
        for attempt in range(_ATTEMPTS):
            generator = np.random.default_rng([self.seed, attempt])
            uniform = generator.random(int((~held_out).sum()))
            fits: dict[float, dict[str, Any]] = {}

            def accuracy_at(rate: float, uniform=uniform, fits=fits) -> float:
                given = labels[~held_out] ^ (uniform < rate)
                fits[rate] = classifier.fit(features[~held_out], given, self.hidden, self.seed)
                found = classifier.logits(fits[rate], features[held_out])
                return classifier.balanced_accuracy(found, labels[held_out])

            rate, accuracy = classifier.bisect(accuracy_at, self.accuracy, close=_CLOSE)
            if abs(accuracy - self.accuracy) < abs(best[2] - self.accuracy):
                best = fits[rate], rate, accuracy
            too_hard = max(fits) == 0.0  # without any flip it is not accurate enough
            if too_hard or abs(best[2] - self.accuracy) <= _TOLERANCE:
                break
        return best

    def _begin(self, made: Mapping[str, Any], initial: Initial) -> Link:
        parameters = {name: np.asarray(x, np.float32) for name, x in made["parameters"].items()}

        def apply(rewards: np.ndarray, scored: Scored) -> np.ndarray:
            found = classifier.logits(parameters, _states(scored))
            if self.score == "logit":
                return found
            return (0.5 * (1.0 + np.tanh(0.5 * found))).astype(np.float32)

        words = f"{self._words(made['accuracy'])} (area under the curve {made['area']:.3g})"
        return Link(apply, self._range, words, clean=self._clean)

    def _range(self, bounds: Range | None) -> Range | None:
        return (0.0, 1.0) if self.score == "probability" else None

    def _clean(self, bounds: Range) -> Range:
        half = (bounds[1] - bounds[0]) / 2
        return self._range(bounds) or (-half, half)  # a logit of 0 says neither right nor wrong


def _states(scored: Scored) -> np.ndarray:
    if scored.states is None:
        raise RuntimeError("rewards.learned needs a copy of the first policy, and none is kept")
    return np.asarray(scored.states(), np.float32)
