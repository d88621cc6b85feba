"""Flips, Gaussian noise and spikes: rates, laws, order, reproducibility."""

import dataclasses

import numpy as np
import pytest
from scipy import stats
from scored_responses import apply, scored

from dfpo_jax.rewards import Rewards
from dfpo_jax.rewards.flip import Flip
from dfpo_jax.rewards.gaussian import Gaussian
from dfpo_jax.rewards.spike import Spike

SIZE = 20_000
TAG = 0x6E6F6973
FULL = Rewards(
    flip=Flip(0.3, 0.3, seed=4),
    gaussian=Gaussian(std=0.2, seed=4),
    spike=Spike(probability=0.3, seed=4),
)


def noisy(rewards, clean, **options):
    responses = scored(clean, **options)
    return rewards.build(responses.range).apply(responses.clean, responses)


def random(seed, step, stream, round=0):
    return np.random.default_rng([seed, TAG, step, stream, *([round] if round else [])])


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 3.0)])
@pytest.mark.parametrize("probability", [0.2, 0.8])
def test_flips_have_the_given_rate(low, high, probability):
    bounds = stats.binom.ppf([1e-6, 1 - 1e-6], SIZE, probability)
    wrong = np.full(SIZE, 0.25, np.float32)
    right = np.full(SIZE, 1.0, np.float32)  # the midpoint of the second range counts as right
    found = apply(Flip(false_positive=probability), wrong, bounds=(low, high))
    assert set(np.unique(found)) == {np.float32(0.25), np.float32(high)}
    assert bounds[0] <= np.sum(found == high) <= bounds[1]
    only = Flip(false_positive=probability)
    np.testing.assert_array_equal(apply(only, right, bounds=(low, high)), right)
    found = apply(Flip(false_negative=probability), right, bounds=(low, high))
    assert set(np.unique(found)) == {np.float32(1.0), np.float32(low)}
    assert bounds[0] <= np.sum(found == low) <= bounds[1]
    only = Flip(false_negative=probability)
    np.testing.assert_array_equal(apply(only, wrong, bounds=(low, high)), wrong)


def test_certain_flips_exchange_right_and_wrong():
    found = apply(Flip(1.0, 1.0), [0.0, 0.49, 0.5, 1.0])
    np.testing.assert_array_equal(found, [1.0, 1.0, 0.0, 0.0])


@pytest.mark.parametrize("round", [0, 2])
def test_flips_are_those_of_a_plain_loop(round):
    clean = [0.0, 0.3, 0.5, 0.7, 1.0] * 40
    found = apply(Flip(0.4, 0.3, seed=9), clean, bounds=(-1.0, 2.0), step=5, round=round)
    uniform = random(9, 5, 0, round).random(200)
    for reward, u, value in zip(clean, uniform, found, strict=True):
        flipped = (2.0 if u < 0.4 else reward) if reward < 0.5 else (-1.0 if u < 0.3 else reward)
        assert value == np.float32(flipped)


def test_a_range_is_needed_to_flip_and_must_have_two_ends():
    for rewards in (Rewards(flip=Flip(0.2)), Rewards(flip=Flip(false_negative=0.2))):
        with pytest.raises(ValueError, match=r"rewards.flip has .*0.2.* needs a task with a decl"):
            rewards.build(None)
    with pytest.raises(ValueError, match=r"low end is below its high end.*\(1.0, 1.0\)"):
        Rewards(flip=Flip(0.2)).build((1.0, 1.0))
    Rewards(gaussian=Gaussian(0.1)).build(None)


@pytest.mark.parametrize("round", [0, 1])
def test_gaussian_noise_is_normal_and_comes_from_its_stream(round):
    clean = np.linspace(-1, 1, SIZE, dtype=np.float32)
    found = apply(Gaussian(std=0.3, seed=2), clean, bounds=None, step=1, round=round)
    normal = random(2, 1, 1, round).standard_normal(SIZE)
    np.testing.assert_array_equal(found, clean + (0.3 * normal).astype(np.float32))
    assert stats.kstest((found - clean) / 0.3, "norm").pvalue > 1e-4


@pytest.mark.parametrize("round", [0, 3])
def test_spikes_have_the_given_rate_law_and_cut(round):
    settings = Spike(probability=0.2, df=1.5, scale=2.0, cut=20.0)
    spikes = apply(settings, np.zeros(SIZE), bounds=None, step=5, round=round)
    hit = spikes != 0.0
    np.testing.assert_array_equal(hit, random(0, 5, 2, round).random(SIZE) < 0.2)
    bounds = stats.binom.ppf([1e-6, 1 - 1e-6], SIZE, 0.2)
    assert bounds[0] <= hit.sum() <= bounds[1]
    assert np.abs(spikes).max() == np.float32(20.0)
    inside = np.abs(spikes[hit]) < 20.0
    tail = 2.0 * stats.t.sf(10.0, 1.5)
    bounds = stats.binom.ppf([1e-6, 1 - 1e-6], hit.sum(), tail)
    assert bounds[0] <= np.sum(~inside) <= bounds[1]

    def clipped_cdf(x):
        return (stats.t.cdf(x / 2.0, 1.5) - tail / 2) / (1.0 - tail)

    assert stats.kstest(spikes[hit][inside], clipped_cdf).pvalue > 1e-4


def test_the_least_degrees_of_freedom_give_finite_spikes():
    found = apply(Spike(probability=1.0, df=1e-3, cut=5.0), np.zeros(SIZE), bounds=None)
    assert np.isfinite(found).all() and np.abs(found).max() == 5.0


def test_flips_come_first_then_gaussian_noise_then_spikes():
    clean = np.tile(np.array([0.0, 1.0], np.float32), 100)
    found = noisy(FULL, clean, step=2)
    expected = clean
    for name in ("flip", "gaussian", "spike"):
        expected = apply(getattr(FULL, name), expected, step=2)
    np.testing.assert_array_equal(found, expected)
    flipped = apply(FULL.flip, clean, step=2)
    assert np.any(flipped != clean) and np.any(found != flipped)


def test_reproducible_and_a_function_of_seed_step_round_and_position():
    clean = np.tile(np.array([0.0, 1.0], np.float32), 100)
    found = noisy(FULL, clean, step=7)
    np.testing.assert_array_equal(found, noisy(FULL, clean, step=7))
    np.testing.assert_array_equal(found[:30], noisy(FULL, clean[:30], step=7))
    assert np.mean(found == noisy(FULL, clean, step=8)) < 0.1
    assert np.mean(found == noisy(FULL, clean, step=7, round=1)) < 0.1
    for name in ("flip", "gaussian", "spike"):
        one = getattr(FULL, name)
        other = dataclasses.replace(one, seed=5)
        assert np.any(apply(one, clean, step=7) != apply(other, clean, step=7)), name


def test_steps_and_rounds_flip_independently():
    clean, settings = np.zeros(SIZE // 10), Flip(false_positive=0.5)
    places = [(step, round) for step in range(4) for round in range(3)]
    flips = np.stack([apply(settings, clean, step=s, round=r) for s, r in places])
    off_diagonal = np.corrcoef(flips)[~np.eye(len(places), dtype=bool)]
    assert np.abs(off_diagonal).max() < 5.0 / np.sqrt(clean.size)


def test_parts_are_independent():
    clean = np.zeros(SIZE)
    flips = apply(Flip(false_positive=0.3), clean)
    hits = apply(Spike(probability=0.3), clean)
    normal = apply(Gaussian(std=1.0), clean)
    parts = [flips, hits != 0.0, np.sign(hits), np.sign(normal), np.abs(normal)]
    correlations = np.corrcoef(np.stack(parts))
    for i, j in [(0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (1, 3), (1, 4), (2, 3), (2, 4)]:
        assert abs(correlations[i, j]) < 5.0 / np.sqrt(SIZE), (i, j)
    # Gaussian noise and spike sizes: over steps, since two equal streams would only agree at the
    # first position (the two laws use up a stream at different speeds).
    pair = [Gaussian(std=1.0), Spike(probability=1.0)]
    signs = [[np.sign(apply(part, [0.0], step=step)[0]) for step in range(400)] for part in pair]
    assert abs(np.corrcoef(signs)[0, 1]) < 5.0 / np.sqrt(400)
