"""The correction of known error rates: closed forms, its range, and where it changes nothing."""

import jax
import numpy as np
import pytest
from scored_responses import apply, scored
from tiny import Markov, make_state, ragged_rollout

from dfpo_jax import ops
from dfpo_jax.advantages import Advantages, Gae, Group
from dfpo_jax.algorithms import AlgorithmConfig, compose
from dfpo_jax.algorithms.interface import Observed
from dfpo_jax.critics import Critics
from dfpo_jax.rewards import Rewards
from dfpo_jax.rewards.clip import Clip
from dfpo_jax.rewards.correction import Correction
from dfpo_jax.rewards.flip import Flip
from dfpo_jax.rewards.gaussian import Gaussian
from dfpo_jax.rewards.length import Length
from dfpo_jax.tasks.base import Item

BY_PROMPT = Correction(false_positive_column="fp", false_negative_column="rates.fn")


def rows(rates):
    """Items whose rows hold rates."""
    return [
        Item(f"p{i}", "a", {"row": {"fp": wrong, "rates": {"fn": missed}}})
        for i, (wrong, missed) in enumerate(rates)
    ]


def test_known_rates_are_undone_on_any_range():
    found = apply(Correction(0.2, 0.3), [0.0, 1.0, 0.5])
    np.testing.assert_allclose(found, [-0.4, 1.6, 0.6], rtol=1e-6)
    assert found.dtype == np.float32
    link = Correction(0.2, 0.3).build()
    np.testing.assert_allclose(link.range((0.0, 1.0)), (-0.4, 1.6), rtol=1e-6)
    assert link.unit == pytest.approx(2.0)
    found = apply(Correction(0.2, 0.3), [-1.0, 1.0], bounds=(-1.0, 1.0))
    np.testing.assert_allclose(found, [-1.8, 2.2], rtol=1e-6)
    forward = Correction(false_negative=0.3, kind="forward")
    np.testing.assert_allclose(apply(forward, [0.0, 1.0]), [-0.7, 0.3], rtol=1e-6)
    np.testing.assert_allclose(forward.build().range((0.0, 1.0)), (-0.7, 0.3), rtol=1e-6)


def test_the_mean_over_flips_is_the_clean_reward():
    clean = np.repeat([0.0, 1.0], 20000).astype(np.float32)
    link = Rewards(flip=Flip(0.3, 0.1), correction=Correction(0.3, 0.1)).build((0.0, 1.0))
    found = link.apply(clean, scored(clean)).reshape(2, -1).mean(axis=1)
    np.testing.assert_allclose(found, [0.0, 1.0], atol=0.02)  # four deviations of the mean


def test_rates_of_each_prompt_come_from_columns():
    rates = [(0.0, 0.0), (0.2, 0.3), (0.5, 0.25)]
    items = rows(rates)
    link = BY_PROMPT.build(items)
    for end in (0.0, 1.0):
        rewards = np.full(3, end, np.float32)
        found = link.apply(rewards, scored(rewards)._replace(items=items))
        expected = [(end - wrong) / (1 - wrong - missed) for wrong, missed in rates]
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(link.range((0.0, 1.0)), (-2.0, 2.0), rtol=1e-6)
    assert BY_PROMPT.build().range((0.0, 1.0)) is None  # of prompts that are not known
    half = Correction(false_negative=0.5, false_positive_column="fp").build(items[:2])
    np.testing.assert_allclose(half.range((0.0, 1.0)), (-0.2 / 0.3, 0.8 / 0.3 + 0 * 2), rtol=1e-6)


def test_it_acts_behind_the_noise_and_before_the_length_penalty_and_the_clip():
    clean = np.array([0.0, 1.0], np.float32)
    responses = scored(clean, lengths=[10, 10])
    rewards = {"correction": Correction(0.25, 0.25), "length": Length(4)}
    chain = Rewards(**rewards).build((0.0, 1.0))
    np.testing.assert_allclose(chain.apply(clean, responses), [-1.5, 0.5])
    assert chain.range((0.0, 1.0)) == (-1.5, 1.5)
    chain = Rewards(**rewards, clip=Clip(1.0)).build((0.0, 1.0))
    np.testing.assert_allclose(chain.apply(clean, responses), [-1.0, 0.5])
    flipped = Rewards(flip=Flip(1.0, 1.0), correction=Correction(0.25, 0.25)).build((0.0, 1.0))
    np.testing.assert_allclose(flipped.apply(clean, responses), [1.5, -0.5])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"false_positive": 0.5, "false_negative": 0.5}, "false_positive is 0.5 and .* below 1"),
        ({"false_positive": 1.0}, "false_positive is 1 and false_negative 0; their sum must be"),
        ({"false_negative": -0.1}, r"false_negative is -0.1; it must lie in \[0, 1\]"),
        ({"kind": "both", "false_positive": 0.1}, "kind is 'both'; .* backward, forward"),
        ({"kind": "forward"}, "kind is 'forward'; nothing reads it while no rate is set"),
        (
            {"kind": "forward", "false_positive": 0.1, "false_negative": 0.1},
            "false_positive is 0.1; kind is 'forward', which reads false negatives alone, so it",
        ),
        (
            {"kind": "forward", "false_positive_column": "fp", "false_negative_column": "fn"},
            "false_positive_column is 'fp'; kind is 'forward', which",
        ),
        (
            {"false_positive": 0.1, "false_positive_column": "fp"},
            "false_positive is 0.1; false_positive_column is 'fp', which replaces it, so it must",
        ),
    ],
)
def test_rates_of_no_verifier_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        Correction(**settings)


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([Item("p", "a")], "rewards.correction.false_positive_column is 'fp'; prompt 'p' has no c"),
        ([Item("p", "a", {"row": {"fn": 0}})], "row of prompt 'p' has no 'fp', which rewards.cor"),
        (rows([(0.1, 0.1), (0.6, 0.4)]), "prompt 'p1': false_positive is 0.6 and .* below 1"),
        (rows([("0.1", 0.1)]), "prompt 'p0': column 'fp', which .* is '0.1'; it must be a number"),
        (rows([(0.1, 1.5)]), "prompt 'p0': column 'rates.fn', which .* is 1.5; it must be a numbe"),
        (rows([(True, 0.0)]), "column 'fp', which .* is True; it must be a number"),
        (rows([(float("nan"), 0.0)]), "column 'fp', which .* is nan; it must be a number"),
    ],
)
def test_a_column_that_holds_no_rates_is_one_line(items, said):
    with pytest.raises(ValueError, match=said) as refused:
        BY_PROMPT.build(items)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("bounds", [None, (1.0, 1.0)])
def test_rewards_without_a_range_are_refused(bounds):
    with pytest.raises(ValueError, match="^rewards.correction acts on rewards whose range is"):
        Rewards(correction=Correction(0.1)).build(bounds)
    with pytest.raises(ValueError, match="^rewards.correction acts on .* None; it needs a known"):
        Rewards(gaussian=Gaussian(0.1), correction=Correction(0.1)).build((0.0, 1.0))


CONFIGS = {
    "ppo": AlgorithmConfig(critic=Critics("scalar"), advantage=Advantages("gae", gae=Gae(0.9))),
    "grpo": AlgorithmConfig(
        critic=Critics("none"), advantage=Advantages("group", whiten=False, group=Group())
    ),
    "dr_grpo": AlgorithmConfig(
        critic=Critics("none"),
        advantage=Advantages("group", whiten=False, group=Group(normalize=False)),
    ),
}
RATES = [(0.1, 0.2), (0.45, 0.5), (0.0, 0.0), (0.3, 0.0)]


def changes(name, kind):
    """By how much a correction changes advantages: with one pair of rates, with one per prompt."""
    algorithm, rollout = compose(Markov(), CONFIGS[name], 0.8), ragged_rollout()
    prepare = jax.jit(algorithm.prepare)
    items = [item for item in rows(RATES) for _ in range(rollout.samples)]
    observed = np.array([1, 0, 0, 1, 1, 1, 0, 1], np.float32)

    def advantages(**sections):
        chain = Rewards(**sections).build((0.0, 1.0), items)
        rewards = chain.apply(observed, scored(observed)._replace(items=items))
        state = make_state(algorithm)
        controls = {name: float(value) for name, value in state.controls.items()}
        controls = algorithm.observe(controls, Observed(rewards, chain.range((0.0, 1.0))))
        state = state.replace(controls={k: np.float32(v) for k, v in controls.items()})
        if "critic" in state.params:  # as it starts, it says the same in any units
            head = jax.tree.map(np.zeros_like, state.params["critic"]["head"])
            state.params["critic"] = {**state.params["critic"], "head": head}
        return prepare(state, rollout.replace(rewards=rewards), jax.random.key(0))[0].advantages

    plain = advantages()
    assert np.abs(plain).max() > 0.1
    wrong, column = (0.3, "fp") if kind == "backward" else (0.0, "")
    sections = Correction(wrong, 0.2, kind=kind), Correction(0.0, 0.0, column, "rates.fn", kind)
    return [float(np.abs(advantages(correction=x) - plain).max()) for x in sections]


@pytest.mark.parametrize("kind", ops.CORRECTIONS)
def test_one_pair_of_rates_changes_no_update_that_is_normalised(kind):
    once, by_prompt = changes("ppo", kind)
    assert once < 1e-4 and by_prompt > 0.05
    once, by_prompt = changes("grpo", kind)  # all responses to a prompt have its rates
    assert once < 1e-4 and by_prompt < 1e-4


def test_without_normalisation_it_is_a_factor():
    once, by_prompt = changes("dr_grpo", "backward")
    assert once == pytest.approx(0.5, abs=1e-5)  # the largest advantage is 1/2 before, 1/2 / J now
    assert by_prompt > 1.0
    once, by_prompt = changes("dr_grpo", "forward")
    assert once < 1e-6 and by_prompt < 1e-6  # r - (1 - rho1), the same for a whole group
