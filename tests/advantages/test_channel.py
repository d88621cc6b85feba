"""The inverse of a noisy verifier on a critic's law: closed forms, and what it changes."""

import dataclasses
import types

import jax
import numpy as np
import pytest
import reference
from critic_states import random_steps
from tiny import Markov, make_state, ragged_rollout

from dfpo_jax.advantages import Advantages, Channel, Gae, Rank, View
from dfpo_jax.algorithms import AlgorithmConfig, Returns, compose
from dfpo_jax.critics import Critics
from dfpo_jax.objectives import Kl, Objectives
from dfpo_jax.training.config import default_config, parse_config
from dfpo_jax.training.run import _check_training

KEY = jax.random.key(0)
WRONG, MISSED = 0.25, 0.125
RATES, INFORMED = Channel(WRONG, MISSED), 1.0 - WRONG - MISSED
NUM = 8


def rows(low=WRONG, high=1.0 - MISSED, num=NUM):
    """Binary rewards at the end of each row, and p in [low, high] for every state."""
    rng = np.random.default_rng(7)
    steps = random_steps(discount=1.0, bootstrap=False)
    outcomes = rng.choice(np.float32([-1.0, 1.0]), (len(steps.mask), 1))
    rewards = reference.last_valid(steps.mask) * outcomes
    probabilities = rng.uniform(low, high, (steps.mask.shape[0], steps.mask.shape[1] + 1))
    law = two_points(probabilities, num)
    return law, steps.replace(rewards=rewards.astype(np.float32)), probabilities


def two_points(probabilities, num):
    """[..., num] sorted quantiles at -1 and 1 whose mean is 2 p - 1, by a plain loop."""
    law = np.zeros((*probabilities.shape, num), np.float32)
    for place in np.ndindex(probabilities.shape):
        left = num * probabilities[place]
        for j in reversed(range(num)):
            law[*place, j] = 2.0 * min(max(left, 0.0), 1.0) - 1.0
            left -= 1.0
    return law


def inverted(law, steps, channel=RATES):
    return channel.inverted(KEY, View(law, None), steps)


def test_the_law_has_the_inverse_of_the_channel_at_its_upper_end():
    law, steps, probabilities = rows(low=0.0, high=1.0)
    view, _ = inverted(law, steps)
    right = np.clip((probabilities - WRONG) / INFORMED, 0.0, 1.0)
    assert np.any(right == 0.0) and np.any(right == 1.0)
    np.testing.assert_allclose(view.law, two_points(right, NUM), atol=1e-5)
    np.testing.assert_allclose(np.mean(view.law, axis=-1), 2.0 * right - 1.0, atol=1e-5)
    beyond = np.broadcast_to(np.float32([-3.0, 3.0])[:, None, None], (2, 3, NUM))
    found, _ = inverted(np.repeat(beyond, 4, axis=0)[:, :1].repeat(6, axis=1), steps)
    np.testing.assert_array_equal(found.law[:4], -1.0)
    np.testing.assert_array_equal(found.law[4:], 1.0)


def test_rewards_are_corrected_where_responses_end_and_nowhere_else():
    law, steps, _ = rows()
    _, found = inverted(law, steps)
    ends = reference.last_valid(steps.mask)
    expected = ends * (2.0 * ((1.0 + steps.rewards) / 2.0 - WRONG) / INFORMED - 1.0)
    np.testing.assert_allclose(found.rewards, expected, atol=1e-6)
    assert found.mask is steps.mask and found.discount == 1.0


def test_samples_of_the_return_lie_on_the_corrected_law():
    law, steps, _ = rows(low=0.0, high=1.0)
    view, _ = inverted(law, steps)
    observed = np.asarray(view.returns(1.0))
    outcomes = steps.rewards.sum(axis=1)[:, None, None]
    valid = steps.mask[..., None] > 0
    np.testing.assert_array_equal(observed, np.where(valid, outcomes, observed))
    after = np.asarray(view.returns(0.0))  # the law at the successor, but for the last token
    inner = (steps.mask * (1 - reference.last_valid(steps.mask))).astype(bool)
    full = np.flatnonzero(steps.mask.all(axis=1))
    assert inner[full].any()
    for row in full:
        np.testing.assert_allclose(after[row, :-1], view.law[row, 1:-1], atol=1e-5)
        np.testing.assert_array_equal(after[row, -1], outcomes[row].repeat(NUM))


def estimate(settings, view, steps):
    return np.asarray(settings.build().estimate(view, steps, None)) * steps.mask


def test_one_pair_of_rates_is_a_positive_affine_map_of_means_but_not_of_ranks():
    law, steps, probabilities = rows()  # nothing is clipped
    before, after = Gae(0.9), inverted(law, steps)
    means = 2.0 * probabilities - 1.0
    slope, shift = 1.0 / INFORMED, (1.0 - 2.0 * WRONG) / INFORMED - 1.0
    np.testing.assert_allclose(np.mean(after[0].law, axis=-1), slope * means + shift, atol=1e-5)
    plain, clean = estimate(before, View(law, None), steps), estimate(before, *after)
    np.testing.assert_allclose(clean, slope * plain, atol=1e-5)
    whitened = [reference.masked_whiten(x, steps.mask) for x in (plain, clean)]
    np.testing.assert_allclose(*whitened, atol=1e-5)
    # Ranks at lambda 1, against the closed forms r - p and r - q of r in {0, 1}.
    seen = View(
        law,
        lambda _: np.broadcast_to(
            steps.rewards.sum(axis=1)[:, None, None], (*steps.mask.shape, NUM)
        ),
    )
    plain, clean = estimate(Rank(1.0), seen, steps), estimate(Rank(1.0), *after)
    valid = steps.mask > 0
    outcome = np.broadcast_to((1.0 + steps.rewards.sum(axis=1)[:, None]) / 2.0, valid.shape)[valid]
    p = probabilities[:, :-1][valid]
    q = (p - WRONG) / INFORMED
    # The quantile at the border lies between the ends: p and q are rounded to a quantile.
    np.testing.assert_allclose(plain[valid], outcome - p, atol=1 / NUM + 1e-6)
    np.testing.assert_allclose(clean[valid], outcome - q, atol=1 / NUM + 1e-6)
    slope, shift = np.polyfit(plain[valid], clean[valid], 1)
    left = clean[valid] - (slope * plain[valid] + shift)
    assert np.std(left) > 0.1 * np.std(clean[valid])


def test_a_scalar_critic_is_inverted_too():
    law, steps, probabilities = rows(num=1)
    view, after = inverted(law, steps)
    expected = 2.0 * (probabilities - WRONG) / INFORMED - 1.0
    np.testing.assert_allclose(view.law[..., 0], expected, atol=1e-5)
    returns = np.asarray(view.returns(0.9))
    goal = estimate(Gae(0.9), view, after) + expected[:, :-1] * steps.mask
    np.testing.assert_allclose(returns[..., 0] * steps.mask, goal, atol=1e-5)


# --- in an algorithm ----------------------------------------------------------------------------


def test_the_advantage_alone_reads_the_corrected_law():
    advantage = Advantages(gae=Gae(0.9), channel=RATES, whiten=False)
    config = AlgorithmConfig(Critics("scalar", lambda_=0.9), advantage)
    algorithm = compose(Markov(), config, 1.0)
    state = make_state(algorithm, shift=0.5, scale=0.5)
    rewards = np.float32([0, 1, 1, 0, 1, 0, 1, 0])
    rollout = ragged_rollout().replace(rewards=rewards, clean_rewards=rewards)
    batch, _ = algorithm.prepare(state, rollout, KEY)
    values = (np.asarray(algorithm.predict(state, rollout))[..., 0] - 0.5) / 0.5
    right = np.clip(((1.0 + values) / 2.0 - WRONG) / INFORMED, 0.0, 1.0)
    ends = reference.last_valid(rollout.mask)
    corrected = ends * (2.0 * (rewards - WRONG) / INFORMED - 1.0)[:, None]
    expected, _ = reference.gae(corrected, 2.0 * right - 1.0, rollout.mask, 1.0, 0.9)
    np.testing.assert_allclose(batch.advantages, expected, atol=5e-5)
    assert np.any(right == 0.0) and np.any(right > 0.0)
    _, goal = reference.gae(ends * (2.0 * rewards - 1.0)[:, None], values, rollout.mask, 1.0, 0.9)
    np.testing.assert_allclose(batch.critic.returns * rollout.mask, goal, atol=2e-5)


# --- refusals -----------------------------------------------------------------------------------

WHO = "advantage.channel has rates 0.25 and 0.125"
ENDS = f"{WHO}, which belong to returns at the two ends of the range of rewards, so it must"


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        ((-0.1, 0.0), r"false_positive is -0.1; it must lie in \[0, 1\]"),
        ((0.0, 1.5), r"false_negative is 1.5; it must lie in \[0, 1\]"),
        ((0.5, 0.5), "false_positive is 0.5 and false_negative 0.5; their sum must be below 1"),
        ((0.0, 1.0), "false_positive is 0.0 and false_negative 1.0; their sum must be below 1"),
        ((float("nan"), 0.0), "false_positive is nan; it must lie in"),
    ],
)
def test_rates_of_no_verifier_are_refused(rates, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        Channel(*rates)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"critic": Critics("none"), "advantage": Advantages("group", channel=RATES)},
            f"{WHO}; advantage 'group' reads no critic, so they must be 0.0",
        ),
        ({"returns": Returns(discount=0.9)}, f"returns.discount is 0.9; {ENDS} be 1.0"),
        (
            {"returns": Returns(overlong="bootstrap")},
            f"returns.overlong is 'bootstrap'; {ENDS} be 'terminal' or 'mask'",
        ),
        (
            {"returns": Returns(outcome=False), "critic": Critics(source="x", warmup=0)},
            f"returns.outcome is False; {ENDS} be True",
        ),
        ({"critic": Critics(source="x")}, f"critic.source is 'x'; {ENDS} be ''"),
        (
            {"objective": Objectives(kl=Kl(0.1, where="reward"))},
            f"objective 'kl' adds rewards of single tokens; {ENDS} stand in the loss",
        ),
    ],
)
def test_parts_whose_returns_are_not_binary_are_refused(changes, said):
    config = AlgorithmConfig(advantage=Advantages(channel=RATES))
    with pytest.raises(ValueError) as refused:
        compose(Markov(), dataclasses.replace(config, **changes), 1.0)
    assert str(refused.value) == said


@pytest.mark.parametrize(
    ("section", "settings"),
    [
        ("gaussian", {"std": 0.1}),
        ("spike", {"probability": 0.1}),
        ("correction", {"false_positive": 0.1}),
        ("length", {"buffer": 2}),
        ("feature", {"bonus": 0.1, "text": "a"}),
        ("squash", {"scale": 0.1}),
        ("clip", {"bound": 0.5}),
        ("rank", {"within": "batch"}),
    ],
)
def test_links_that_make_other_rewards_of_verdicts_are_refused(section, settings):
    config = default_config()
    config.advantage.channel.update(false_positive=0.25, false_negative=0.125)
    config.rewards.flip.false_positive = 0.25
    config.rewards.scale.factor = 2.0
    parse_config(config)
    config.rewards[section].update(settings)
    with pytest.raises(ValueError, match=f"{WHO}, of verdicts .* and rewards.{section} makes"):
        parse_config(config)


def test_rewards_of_no_known_range_are_refused():
    config = parse_config({"advantage": {"channel": {"false_positive": 0.25}}})
    task = types.SimpleNamespace(name="mine", trial=lambda: None, reward_range=None)
    run = types.SimpleNamespace(config=config, reward_range=None, train_task=task, learner=None)
    run.rewards = types.SimpleNamespace(start=None)
    with pytest.raises(ValueError, match="advantage.channel acts .* no range is known of those of"):
        _check_training(run)
