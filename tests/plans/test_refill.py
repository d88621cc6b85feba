"""DAPO's refill on scripted rewards: what is kept, when it stops, what it falls back to."""

import numpy as np
import pytest
from plan_draws import Scripted, prompts

from dfpo_jax.plans.refill import Refill

MIXED, RIGHT, WRONG = [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]


def collect(rewards, count, most_rounds=10):
    draw = Scripted(dict(enumerate(rewards)))
    drawn, metrics = Refill(most_rounds).build(2).collect(draw, prompts, count, 2)
    groups = [drawn.items[group].index for group in drawn.rollout.groups[::2]]
    for row, text in enumerate(drawn.texts):
        item, _, sample = (int(x) for x in text.split("."))
        assert drawn.items[drawn.rollout.groups[row]].index == item and sample == row % 2
        assert drawn.rollout.tokens[row, 0] == item
    assert drawn.rollout.samples == 2 and len(drawn.texts) == 2 * count
    return groups, metrics, draw.rounds, drawn.rollout.rewards


def test_groups_without_variance_are_replaced_by_new_prompts():
    groups, metrics, rounds, rewards = collect(
        [MIXED, RIGHT, WRONG, RIGHT, MIXED, MIXED, WRONG, MIXED, MIXED], 3
    )
    assert rounds == [[0, 1, 2], [3, 4, 5]] and groups == [0, 4, 5]
    np.testing.assert_array_equal(rewards, MIXED * 3)
    drawn = np.mean([MIXED, RIGHT, WRONG, RIGHT, MIXED, MIXED])
    assert metrics == {
        "plan/rounds": 2.0,
        "plan/kept_share": 0.5,
        "plan/fallback_groups": 0.0,
        "plan/drawn_reward": pytest.approx(drawn),
    }


def test_one_round_is_enough_where_all_differ_and_further_groups_are_left_out():
    groups, metrics, rounds, _ = collect([MIXED] * 3, 3)
    assert (groups, rounds, metrics["plan/kept_share"]) == ([0, 1, 2], [[0, 1, 2]], 1.0)
    groups, metrics, _, _ = collect([MIXED, WRONG, MIXED, MIXED], 2)
    assert groups == [0, 2] and metrics["plan/kept_share"] == 0.75  # 3 was drawn too


def test_after_the_last_round_groups_without_variance_fill_up_and_are_counted():
    groups, metrics, rounds, _ = collect([WRONG, RIGHT, WRONG, WRONG, MIXED, RIGHT], 3, 2)
    assert groups == [4, 0, 1] and len(rounds) == 2
    assert metrics["plan/fallback_groups"] == 2.0 and metrics["plan/kept_share"] == pytest.approx(
        1 / 6
    )
    groups, metrics, rounds, _ = collect([WRONG] * 8, 2, 4)
    assert groups == [0, 1] and metrics["plan/fallback_groups"] == 2.0 and len(rounds) == 4


def test_a_plan_needs_a_round():
    with pytest.raises(ValueError, match=r"most_rounds is 0; it must lie in \[1, inf\]"):
        Refill(0)
