"""Metrics of an iteration's noise, against counts by hand."""

import json
import types

import numpy as np
import pytest
from plan_draws import draw, prompts

from dfpo_jax.rewards import Rewards
from dfpo_jax.rewards.correction import Correction
from dfpo_jax.rewards.feature import Feature
from dfpo_jax.rewards.flip import Flip
from dfpo_jax.rewards.gaussian import Gaussian
from dfpo_jax.rewards.interface import whole_response
from dfpo_jax.rewards.learned import Learned
from dfpo_jax.rewards.length import Length
from dfpo_jax.rewards.rank import Rank
from dfpo_jax.rewards.scale import Scale
from dfpo_jax.training import loop
from dfpo_jax.training.noise_metrics import METRICS, noise_metrics


def drawn(clean, rewards, texts=None, samples=4):
    """Responses with these rewards, `samples` to each prompt."""
    found = draw(prompts(len(clean) // samples), samples, 0)
    clean, rewards = np.asarray(clean, np.float32), np.asarray(rewards, np.float32)
    rollout = found.rollout.replace(clean_rewards=clean, rewards=rewards)
    return found._replace(rollout=rollout, texts=list(texts or found.texts))


def metrics(clean, rewards, texts=None):
    return noise_metrics(drawn(clean, rewards, texts), 0.5, 0.5, whole_response)


def test_rates_of_errors_are_shares_of_the_wrong_and_of_the_right_responses():
    clean = [1, 1, 1, 0, 0, 0, 0, 0]
    seen = [1, 1, 0, 1, 1, 0, 0, 0]
    found = metrics(clean, seen, "rrraabcd")
    assert [x.name for x in METRICS] == list(found)
    assert found == pytest.approx(
        {
            "noise/false_positive": 2 / 5,
            "noise/false_negative": 1 / 3,
            "noise/informedness": 1 - 2 / 5 - 1 / 3,
            "noise/precision": 2 / 4,
            "noise/top_wrong_rate": 2 / 8,
        }
    )


def test_the_wrong_answer_that_is_accepted_most_often():
    clean, seen = [0] * 8, [1, 1, 1, 0, 1, 1, 0, 0]
    found = metrics(clean, seen, ["x", " x", "y", "x", "x", "y", "z", "z"])
    assert found["noise/top_wrong_rate"] == 3 / 8  # one "x" was not accepted
    assert found["noise/precision"] == 0.0
    found = metrics(clean, [1] * 8, ["", " ", "", "", "", "x", "x", "x"])
    assert found["noise/top_wrong_rate"] == 5 / 8  # no answer is one answer
    assert metrics([1] * 8, [1] * 8)["noise/top_wrong_rate"] == 0.0


@pytest.mark.parametrize(
    ("clean", "seen", "missing"),
    [
        ([1] * 4, [1, 0, 1, 1], {"false_positive", "informedness"}),
        ([0] * 4, [1, 0, 1, 1], {"false_negative", "informedness"}),
        ([1, 0, 1, 1], [0] * 4, {"precision"}),
    ],
)
def test_what_is_not_defined_is_left_out_and_the_rest_is_finite(clean, seen, missing):
    found = metrics(clean, seen)
    names = {"false_positive", "false_negative", "informedness", "precision", "top_wrong_rate"}
    assert set(found) == {f"noise/{name}" for name in names - missing}
    json.dumps(found, allow_nan=False)


def test_a_reward_at_the_midpoint_is_right_and_accepted():
    found = noise_metrics(drawn([0.7, 0.69] * 2, [0.7, 0.69] * 2), 0.7, 0.7, whole_response)
    assert found["noise/informedness"] == 1.0


class Run:
    """Of a run, what the loop reads for these metrics."""

    def __init__(self, rewards, bounds=(0.0, 1.0), plan_range=None):
        self.rewards = rewards.build(bounds)
        self.config = types.SimpleNamespace(rewards=rewards)
        self.train_task = self.plan = self
        self.range, self.answer = plan_range, whole_response
        self.task_range = bounds

    @property
    def reward_range(self):
        return self.task_range

    @property
    def clean_range(self):
        return self.rewards.clean(self.task_range)


def test_they_are_there_where_a_link_acts_on_verdicts_with_a_range():
    rows = drawn([1, 0, 1, 0], [1, 1, 1, 0])
    assert loop._noise(Run(Rewards(flip=Flip(0.2))), rows)["noise/false_positive"] == 0.5
    for sections, middle in (
        ({"flip": Flip(0.2), "correction": Correction(0.2, 0.3)}, 0.6),
        ({"gaussian": Gaussian(1.0), "scale": Scale(3.0)}, 1.5),
        ({"flip": Flip(0.2), "length": Length(2, 3.0)}, 0.5),
        ({"feature": Feature(4.0, "length")}, 0.5),
    ):
        for offset, share in ((-0.01, 0.0), (0.01, 0.5)):
            seen = drawn([1, 0, 1, 0], [9.0, middle + offset, 9.0, -9.0])
            found = loop._noise(Run(Rewards(**sections)), seen)
            assert found["noise/false_positive"] == share, sections
    for run in (
        Run(Rewards()),
        Run(Rewards(gaussian=Gaussian(0.1)), None),
        Run(Rewards(gaussian=Gaussian(0.1)), (1.0, 1.0)),
        Run(Rewards(flip=Flip(0.2)), plan_range=(-1.0, 1.0)),
        Run(Rewards(flip=Flip(0.2), rank=Rank("group"))),
        Run(Rewards(learned=Learned(4, score="logit"))),
    ):
        assert loop._noise(run, rows) == {}
