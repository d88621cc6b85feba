"""Relabelling by majority, ranks and the squash against plain references."""

import math

import numpy as np
import pytest
from scipy import stats
from scored_responses import apply, scored

from dfpo_jax.rewards import Rewards
from dfpo_jax.rewards.flip import Flip
from dfpo_jax.rewards.interface import LARGEST
from dfpo_jax.rewards.majority import Majority
from dfpo_jax.rewards.rank import Rank
from dfpo_jax.rewards.scale import Scale
from dfpo_jax.rewards.spike import Spike
from dfpo_jax.rewards.squash import Squash
from dfpo_jax.tasks.base import Item


def responses(rewards, prompts, texts, bounds=(0.0, 1.0)):
    items = [Item(prompt, "a") for prompt in prompts]
    return scored(rewards, bounds)._replace(items=items, texts=list(texts))


def relabelled(threshold, rewards, prompts, texts, **options):
    rows = responses(rewards, prompts, texts, **options)
    return Majority(threshold).build().apply(rows.clean, rows)


# --- majority -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("threshold", "texts", "label"),
    [
        (0.5, "xxyz", "x"),
        (0.75, "xxyz", None),
        (0.75, "xxxz", "x"),
        (0.1, "xxyy", None),  # none is alone in first place
        (0.1, "xyyz", "y"),
        (1.0, "xxxx", "x"),
        (1.0, "xxx ", None),  # the last has no answer, and counts
        (0.5, ["", "", "", "x"], None),
        (0.25, ["", "", "", "x"], "x"),
        (0.1, ["", "", "", ""], None),
        (0.55, "x" * 11 + "abcdefghi", "x"),  # 0.55 * 20 is above 11 in floating point
    ],
)
def test_the_majority_answer_becomes_the_label_where_enough_agree(threshold, texts, label):
    verdicts = np.resize([0.0, 1.0], len(texts))
    found = relabelled(threshold, verdicts, "p" * len(texts), texts)
    expected = verdicts if label is None else [float(text == label) for text in texts]
    np.testing.assert_array_equal(found, expected)


def test_groups_are_those_of_a_prompt_wherever_they_stand():
    texts, names = "xaxbxaxb", "pqpqpqpr"
    found = relabelled(0.6, [0.0] * 8, names, texts, bounds=(-1.0, 3.0))
    np.testing.assert_array_equal(found, [3.0, 3.0, 3.0, -1.0, 3.0, 3.0, 3.0, 0.0])


def test_the_task_reads_the_answers():
    rows = responses([0.0] * 3, "ppp", ["so #### 7", "7", "#### 8"])
    rows = rows._replace(read=lambda item, text: text.rpartition("####")[2].strip())
    found = Majority(0.6).build().apply(rows.clean, rows)
    np.testing.assert_array_equal(found, [1.0, 1.0, 0.0])


def test_it_undoes_flips_within_groups_that_agree_and_no_others():
    texts = ["x"] * 7 + ["y"] + list("xyzuvwab")
    clean = np.array([1.0] * 7 + [0.0] + [1.0] + [0.0] * 7, np.float32)
    rows = responses(clean, ["p"] * 8 + ["q"] * 8, texts)
    flips = Rewards(flip=Flip(0.4, 0.4, 3)).build((0.0, 1.0)).apply(clean, rows)
    both = Rewards(flip=Flip(0.4, 0.4, 3), majority=Majority(0.5)).build((0.0, 1.0))
    assert np.any(flips[:8] != clean[:8])
    found = both.apply(clean, rows)
    np.testing.assert_array_equal(found[:8], clean[:8])
    np.testing.assert_array_equal(found[8:], flips[8:])


# --- ranks --------------------------------------------------------------------------------------


def plain_ranks(rewards):
    found = [
        (sum(other < r for other in rewards) - sum(other > r for other in rewards))
        / max(len(rewards) - 1, 1)
        for r in rewards
    ]
    return np.array(found, np.float32)


def test_ranks_are_those_of_a_plain_loop():
    rewards = np.random.default_rng(0).integers(-3, 4, 50).astype(np.float32)
    names = [f"p{i % 7}" for i in range(50)]
    rows = responses(rewards, names, "a" * 50, bounds=None)
    found = Rank("batch").build().apply(rewards, rows)
    np.testing.assert_array_equal(found, plain_ranks(rewards.tolist()))
    middle = stats.rankdata(rewards)  # ties at the mean of their places
    np.testing.assert_allclose(found, (2 * middle - 51) / 49, atol=1e-6)
    found = Rank("group").build().apply(rewards, rows)
    for i in range(7):
        np.testing.assert_array_equal(found[i::7], plain_ranks(rewards[i::7].tolist()))


def test_ranks_of_few_rewards():
    for within in ("batch", "group"):
        for rewards, expected in (([], []), ([5.0], [0.0]), ([2.0, 2.0], [0.0, 0.0])):
            rows = responses(rewards, "p" * len(rewards), "a" * len(rewards))
            found = Rank(within).build().apply(rows.clean, rows)
            np.testing.assert_array_equal(found, expected)
            assert found.dtype == np.float32
    np.testing.assert_array_equal(apply(Rank("batch"), [3.0, -1e9, 1e9]), [0.0, -1.0, 1.0])


def test_ranks_see_no_spike_and_their_range_is_known():
    link = Rewards(spike=Spike(1.0, cut=1e9), rank=Rank("batch")).build((0.0, 1.0))
    assert link.range((0.0, 1.0)) == (-1.0, 1.0)
    rows = scored(np.zeros(100))
    found = link.apply(rows.clean, rows)
    np.testing.assert_allclose(np.sort(found), np.linspace(-1.0, 1.0, 100), atol=1e-6)
    assert Rank("group").build().range((2.0, 2.0)) == (0.0, 0.0)


# --- the squash ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-9, 0.5, 1e9])
def test_the_squash_is_asinh_in_its_scale(scale):
    rewards = [-1e9, -3.0, 0.0, 0.25, 20.0, 1e9]
    found = apply(Squash(scale), rewards, bounds=None)
    expected = [scale * math.asinh(r / scale) for r in rewards]
    np.testing.assert_allclose(found, np.float32(expected), rtol=1e-6)
    assert np.all(np.diff(found) > 0)


def test_the_squash_keeps_order_and_slope_and_maps_the_range():
    link = Squash(0.5).build()
    assert apply(Squash(0.5), [1e-3])[0] == pytest.approx(1e-3, rel=1e-5)
    expected = (-0.5 * math.asinh(2.0), 0.5 * math.asinh(6.0))
    assert link.range((-1.0, 3.0)) == pytest.approx(expected)
    assert (link.range(None), link.unit) == (None, 1.0)
    both = Rewards(scale=Scale(2.0), squash=Squash(0.5)).build((0.0, 1.0))
    assert both.range((0.0, 1.0))[1] == pytest.approx(0.5 * math.asinh(4.0))


# --- words and refusals -------------------------------------------------------------------------


def test_words_say_what_acts():
    rewards = Rewards(majority=Majority(0.75), squash=Squash(0.5), rank=Rank("group"))
    assert rewards.build((0.0, 1.0)).words.split("; ") == [
        "answers that at least 75% of a prompt's responses gave were rewarded as right",
        "rewards became 0.5 asinh(reward / 0.5)",
        "rewards became ranks from -1 to 1 among the responses to a prompt",
    ]


@pytest.mark.parametrize(
    ("section", "settings", "said"),
    [
        (Majority, {"threshold": -0.1}, r"threshold is -0.1; it must lie in \[0, 1\]"),
        (Majority, {"threshold": 1.1}, r"threshold is 1.1; it must lie in \[0, 1\]"),
        (Rank, {"within": "row"}, "within is 'row'; it must be one of , batch, group"),
        (Squash, {"scale": -1.0}, "scale is -1.0; it must lie in"),
        (Squash, {"scale": float("nan")}, "scale is nan; it must lie in"),
        (Squash, {"scale": 2 * LARGEST}, "scale is 2000000000.0; it must lie in"),
        (Squash, {"scale": 1e-10}, r"scale is 1e-10; it must be 0, or lie in \[1e-09, 1e\+09\]"),
    ],
)
def test_settings_that_cannot_work_are_refused(section, settings, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        section(**settings)


def test_a_majority_needs_a_range():
    for bounds, said in ((None, "no range is declared"), ((1.0, 1.0), r"the range is \(1.0, 1.0")):
        with pytest.raises(ValueError, match=f"^rewards.majority has threshold 0.5; it .*{said}"):
            Rewards(majority=Majority(0.5)).build(bounds)
