"""Reinforce-Ada's exits, pools and down-sampling, by hand on five scripted prompts."""

import numpy as np
import pytest
from plan_draws import Scripted, prompts

from dfpo_jax.plans.elimination import Elimination

# Rewards of five prompts in the order in which they are drawn, four a round.
REWARDS = {
    0: [1, 0, 1, 0],  # balanced at once: 2 correct, 2 not
    1: [0, 0, 1, 0, 0, 1, 0, 0],  # the second correct one comes in round 1
    2: [1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 0],  # its second wrong one comes in round 2
    3: [0] * 16,  # never leaves: none correct
    4: [1] * 15 + [0.6],  # never leaves: one wrong, and 0.6 is below 0.7
}


def collect(rewards, samples=4, **settings):
    plan = Elimination(**{"round_samples": 4, **settings}).build(samples)
    draw = Scripted(rewards)
    drawn, metrics = plan.collect(draw, prompts, len(rewards), samples)
    count = len(rewards)
    assert drawn.items == prompts(count) and drawn.rollout.samples == samples
    assert drawn.rollout.groups.tolist() == np.repeat(range(count), samples).tolist()
    places = []  # in the pools: texts are "item.round.sample"
    for row, text in enumerate(drawn.texts):
        item, round, sample = (int(x) for x in text.split("."))
        assert item == row // samples
        assert drawn.rollout.tokens[row].tolist() == [item, round, sample]
        place = round * settings.get("round_samples", 4) + sample
        assert drawn.rollout.rewards[row] == np.float32(rewards[item][place])
        places.append(place)
    return np.reshape(places, (count, samples)).tolist(), drawn.rollout, metrics, draw.rounds


def test_balanced_exits_and_pools_by_hand():
    places, rollout, metrics, rounds = collect(REWARDS)
    # 5 prompts, then 4 that are active and prompt 0 to fill up; then 3 and two of those that left,
    # 0 and 1, to fill up; then 2 and prompt 0, as sizes are 1, 2, 3 and 5.
    assert rounds[0] == [0, 1, 2, 3, 4] and rounds[1] == [1, 2, 3, 4, 0]
    assert rounds[2] == [2, 3, 4] and rounds[3] == [3, 4]
    assert places == [
        [0, 1, 2, 3],
        [0, 1, 2, 5],  # both correct ones, 2 and 5, and the first two others
        [0, 1, 7, 11],  # both wrong ones, and the first two correct ones
        [0, 1, 2, 3],  # filled up from the other class
        [0, 1, 2, 15],  # one wrong one, so three correct ones
    ]
    means = [0.5, 0.25, 10 / 12, 0.0, 15.6 / 16]
    np.testing.assert_allclose(rollout.baseline, np.repeat(means, 4), rtol=1e-6)
    assert rollout.baseline.dtype == np.float32
    pools = [4, 8, 12, 16, 16]
    assert metrics == {
        "plan/rounds": 4.0,
        "plan/exited_share": pytest.approx(0.6),
        "plan/pool_responses": pytest.approx(np.mean(pools)),
        "plan/drawn_reward": pytest.approx(np.mean(means)),
    }


def test_a_reward_that_is_just_enough_is_correct():
    rewards = {0: [0.7, 0, 0.7, 0], 1: [0.69, 0.71, 0.7, 0.69]}
    places, _, metrics, rounds = collect(rewards)
    assert rounds == [[0, 1]] and places == [[0, 1, 2, 3]] * 2
    assert metrics["plan/exited_share"] == 1.0


def test_positive_exits_and_pools_by_hand():
    places, rollout, metrics, rounds = collect(REWARDS, exit="positive")
    assert rounds == [[0, 1, 2, 3, 4], [3], [3], [3]]
    assert places == [
        [0, 1, 2, 3],
        [0, 1, 2, 3],  # one correct one in the pool
        [0, 1, 2, 3],
        [0, 1, 2, 3],
        [0, 1, 2, 3],
    ]
    np.testing.assert_allclose(rollout.baseline[::4], [0.5, 0.25, 1.0, 0.0, 1.0])
    assert metrics["plan/exited_share"] == pytest.approx(0.8) and metrics["plan/rounds"] == 4.0


def test_responses_of_a_round_are_chosen_among_where_it_draws_more():
    rewards = {0: [0, 0, 0, 0, 0, 1, 1, 1], 1: [1, 1, 1, 1, 1, 1, 0, 0]}
    places, rollout, metrics, rounds = collect(rewards, samples=4, round_samples=8)
    assert places == [[0, 1, 5, 6], [0, 1, 6, 7]] and rounds == [[0, 1]]
    np.testing.assert_allclose(rollout.baseline[::4], [3 / 8, 6 / 8])  # not 1/2, that of the rows
    odd, _, _, _ = collect(rewards, samples=3, round_samples=8)
    assert odd == [[0, 1, 5], [0, 6, 7]]  # n // 2 correct ones


def test_what_is_drawn_to_fill_a_round_reaches_no_pool():
    rewards = {i: [0, 1] for i in range(3)} | {3: [0, 0, 1, 1], 4: [0, 0, 1, 1]}
    places, rollout, _, rounds = collect(rewards, samples=2, round_samples=2)
    # Two are active in round 1; sizes are 1, 2, 3 and 5.
    assert rounds == [[0, 1, 2, 3, 4], [3, 4]]
    nine = {i: [0, 1] for i in range(6)} | {i: [0, 0, 0, 1] for i in range(6, 10)}
    places, rollout, _, rounds = collect(nine, samples=2, round_samples=2)
    assert rounds[1] == [6, 7, 8, 9, 0] and rollout.rewards.max() == 1.0  # 0's further ones are 9
    assert places[0] == [0, 1] and places[6] == [0, 3]
    np.testing.assert_allclose(rollout.baseline[::2], [0.5] * 6 + [0.25] * 4)


@pytest.mark.parametrize("count", [1, 2, 7, 64, 100])
def test_an_iteration_draws_at_most_four_numbers_of_rows(count):
    sizes = set()
    for active in range(1, count + 1):
        rewards = {i: [0, 1] if i >= active else [0, 0, 0, 1] for i in range(count)}
        _, _, _, rounds = collect(rewards, samples=2, round_samples=2)
        assert all(len(set(one)) == len(one) for one in rounds)
        sizes |= {len(one) for one in rounds}
        assert active <= len(rounds[-1]) <= max(2 * active, -(-count // 8))
    assert len(sizes) <= 4


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"exit": "never"}, "exit is 'never'; it must be one of balance, positive"),
        ({"round_samples": 1}, r"round_samples is 1; it must lie in \[2, inf\]"),
        ({"most_rounds": 0}, r"most_rounds is 0; it must lie in \[1, inf\]"),
        ({"correct_at": float("nan")}, "correct_at is nan; it must lie in"),
    ],
)
def test_bad_settings_are_named(settings, said):
    with pytest.raises(ValueError, match=said):
        Elimination(**settings)
