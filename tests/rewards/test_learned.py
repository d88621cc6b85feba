"""The learned reward model: its fit, its figures against plain ones, the bisection, refusals."""

import json

import numpy as np
import pytest
from first_policy import initial, scored

from dfpo_jax.rewards import Rewards, classifier
from dfpo_jax.rewards.learned import Learned
from dfpo_jax.rewards.votes import Votes

WIDTH = 6


def test_accuracy_and_area_are_those_of_all_pairs():
    generator = np.random.default_rng(0)
    logits = np.round(generator.normal(size=200), 1).astype(np.float32)
    labels = generator.random(200) < 0.3
    right, wrong = logits[labels], logits[~labels]
    pairs = [(a > b) + 0.5 * (a == b) for a in right for b in wrong]
    assert classifier.area(logits, labels) == pytest.approx(np.mean(pairs))
    expected = (sum(right > 0) / len(right) + sum(wrong <= 0) / len(wrong)) / 2
    assert classifier.balanced_accuracy(logits, labels) == pytest.approx(expected)


def test_bisection_ends_near_the_target():
    asked = []
    found = classifier.bisect(lambda q: asked.append(q) or 1.0 - q, 0.7, close=0.02)
    assert found == (0.3125, 0.6875) and asked == [0.0, 0.25, 0.375, 0.3125]


@pytest.mark.parametrize("target", [0.55, 0.6, 0.72, 0.9])
def test_bisection_finds_the_rate_of_an_accuracy(target):
    rate, accuracy = classifier.bisect(lambda q: 1.0 - q, target)
    assert rate == pytest.approx(1.0 - target, abs=2**-9) and accuracy == 1.0 - rate


def test_bisection_stays_at_0_where_no_label_may_be_wrong():
    asked = []
    assert classifier.bisect(lambda q: asked.append(q) or 0.7 - q, 0.8) == (0.0, 0.7)
    assert asked == [0.0]
    assert (
        classifier.bisect(lambda q: 0.9 if q < 0.3 else 0.5, 0.72)[1] == 0.9
    )  # 0.18 off, not 0.22


def first_policy(prompts=400, samples=2):
    """Right half of the time; the first feature shows it, the others are noise."""
    generator = np.random.default_rng(1)
    words = np.where(generator.random((prompts, samples)) < 0.5, "right", "left")
    noise = generator.normal(size=(prompts * samples, WIDTH)).astype(np.float32)

    def states(rows, texts):
        found = noise[: len(texts)].copy()
        found[:, 0] = found[:, 0] * 0.5 + 5.0 + np.array([text == "right" for text in texts])
        return found

    return initial({f"p{i}": list(map(str, row)) for i, row in enumerate(words)}, states=states)


@pytest.fixture(scope="module")
def made():
    return Learned(samples=2, hidden=8).build().start.make(first_policy())


def test_it_is_right_as_often_as_is_asked(made):
    assert made == json.loads(json.dumps(made))
    assert 0.70 <= made["accuracy"] <= 0.74 and 0.0 < made["corruption"] <= 0.5
    assert 0.72 < made["area"] < 0.85
    assert made == Learned(samples=2, hidden=8, score="logit").build().start.make(first_policy())


@pytest.mark.parametrize("score", ["probability", "logit"])
def test_its_score_is_the_reward(made, score):
    link = Learned(samples=2, hidden=8, score=score).build()
    begun = link.start.begin(made, first_policy())
    assert "right 7" in begun.words and f"the curve {made['area']:.3g})" in begun.words
    features = np.random.default_rng(2).normal(size=(3, WIDTH)).astype(np.float32) * 3
    responses = scored(first_policy(), [("p0", "left"), ("p0", "right"), ("p1", "up")], features)
    given = np.zeros(3, np.float32)
    found = begun.apply(given, responses)
    values = {name: np.array(x) for name, x in made["parameters"].items()}
    inner = np.tanh(
        (features - values["mean"]) / values["deviation"] @ values["in"] + values["in_bias"]
    )
    expected = inner @ values["out"] + values["out_bias"]
    bounds = None
    if score == "probability":
        expected, bounds = 1.0 / (1.0 + np.exp(-expected)), (0.0, 1.0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert link.clean((0.0, 3.0)) == begun.clean((0.0, 3.0)) == (bounds or (-1.5, 1.5))
    assert found.dtype == np.float32 and link.range((-3.0, 7.0)) == link.range(None) == bounds
    np.testing.assert_array_equal(found[:1], begun.apply(given[:1], responses)[:1])


def test_what_cannot_be_learned_is_refused():
    with pytest.raises(
        ValueError, match=r"accuracy is 0.99; .* right 0\.\d+ of the time at the clo"
    ):
        Learned(samples=2, accuracy=0.99, hidden=8).build().start.make(first_policy())
    with pytest.raises(ValueError, match="4 of 4 responses of the first policy are right"):
        always = initial(
            {"a": ["right"] * 2, "b": ["right"] * 2}, states=lambda r, t: np.zeros((4, 2))
        )
        Learned(samples=2).build().start.make(always)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"samples": 1, "accuracy": 1.0}, r"accuracy is 1.0; it must lie in \[0.5, 1\)"),
        ({"samples": 1, "accuracy": 0.49}, "accuracy is 0.49"),
        ({"samples": 1, "accuracy": float("nan")}, "accuracy is nan"),
        ({"samples": 1, "prompts": 1}, r"prompts is 1; it must lie in \[2, inf\]"),
        ({"samples": 1, "hidden": 0}, "hidden is 0"),
        ({"samples": 1, "seed": -1}, "seed is -1"),
        ({"samples": -1}, "samples is -1"),
        ({"samples": 1, "score": "rank"}, "score is 'rank'; it must be one of probability, logit"),
        ({"accuracy": 0.6}, "accuracy is 0.6; nothing reads it while samples is 0"),
    ],
)
def test_wrong_settings_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        Learned(**settings)


def test_there_is_one_judge():
    with pytest.raises(ValueError, match="votes.samples is 4 and learned.samples 2; each gives"):
        Rewards(votes=Votes(samples=4), learned=Learned(samples=2))
