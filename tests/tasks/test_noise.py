"""Reward corruption: rates, order, reproducibility, ranges."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from dfpo_jax.tasks.noise import RewardNoise

SIZE = 20_000


def test_default_changes_nothing():
    clean = np.array([0.0, 0.75, 1.0, 0.01], np.float32)
    noisy = RewardNoise().apply(clean, 3, 0.0, 1.0)
    assert noisy.dtype == np.float32
    np.testing.assert_array_equal(noisy, clean)
    assert noisy is not clean and not np.shares_memory(noisy, clean)


def test_float32_whatever_the_input():
    for clean in ([0, 1, 1], np.array([0.75, 0.0, 0.75]), np.array([True, False, True])):
        noisy = RewardNoise(gaussian_std=0.1, spike_probability=0.5).apply(clean, 0, 0.0, 1.0)
        assert noisy.dtype == np.float32
    assert RewardNoise().apply([0.75], 0, 0, 1)[0] == np.float32(0.75)


def test_clean_is_not_modified():
    clean = np.linspace(0.0, 1.0, 50, dtype=np.float32)
    kept = clean.copy()
    noise = RewardNoise(0.5, 0.5, gaussian_std=1.0, spike_probability=0.5)
    assert not np.array_equal(noise.apply(clean, 0, 0.0, 1.0), clean)
    np.testing.assert_array_equal(clean, kept)


@pytest.mark.parametrize("probability", [0.1, 0.4])
def test_flip_rates(probability):
    bounds = stats.binom.ppf([1e-6, 1 - 1e-6], SIZE, probability)
    low, high = -1.0, 3.0
    wrong, right = np.full(SIZE, 0.25, np.float32), np.full(SIZE, 1.0, np.float32)

    noise = RewardNoise(false_positive=probability)
    noisy = noise.apply(wrong, 0, low, high)
    assert set(np.unique(noisy)) == {np.float32(0.25), np.float32(high)}
    assert bounds[0] <= np.sum(noisy == high) <= bounds[1]
    # 1.0 is the midpoint of the range, which counts as right.
    np.testing.assert_array_equal(noise.apply(right, 0, low, high), right)

    noise = RewardNoise(false_negative=probability)
    noisy = noise.apply(right, 0, low, high)
    assert set(np.unique(noisy)) == {np.float32(1.0), np.float32(low)}
    assert bounds[0] <= np.sum(noisy == low) <= bounds[1]
    np.testing.assert_array_equal(noise.apply(wrong, 0, low, high), wrong)


def test_certain_flips_exchange_right_and_wrong():
    noisy = RewardNoise(1.0, 1.0).apply([0.0, 0.49, 0.5, 1.0], 0, 0.0, 1.0)
    np.testing.assert_array_equal(noisy, [1.0, 1.0, 0.0, 0.0])


def test_gaussian_moments_and_order():
    clean = np.zeros(SIZE, np.float32)
    residual = RewardNoise(gaussian_std=0.3).apply(clean, 1, 0.0, 1.0)
    assert stats.kstest(residual / 0.3, "norm").pvalue > 1e-4
    # Flips come first: they act on the clean reward, so the noise stays on top of them.
    both = RewardNoise(false_positive=1.0, gaussian_std=0.3).apply(clean, 1, 0.0, 1.0)
    np.testing.assert_allclose(both, 1.0 + residual, rtol=0, atol=1e-6)


def test_spikes_have_the_given_rate_law_and_cut():
    noise = RewardNoise(spike_probability=0.2, spike_df=1.5, spike_scale=2.0, spike_cut=20.0)
    spikes = noise.apply(np.zeros(SIZE, np.float32), 5, 0.0, 1.0)
    hit = spikes != 0.0
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


def test_spikes_come_after_gaussian_noise():
    clean = np.zeros(200, np.float32)
    gaussian, spikes = RewardNoise(gaussian_std=0.5), RewardNoise(spike_probability=0.3)
    both = RewardNoise(gaussian_std=0.5, spike_probability=0.3).apply(clean, 2, 0.0, 1.0)
    parts = gaussian.apply(clean, 2, 0.0, 1.0) + spikes.apply(clean, 2, 0.0, 1.0)
    np.testing.assert_allclose(both, parts, rtol=0, atol=1e-5)


FULL = RewardNoise(0.3, 0.3, gaussian_std=0.2, spike_probability=0.3, seed=4)


def test_reproducible_and_a_function_of_seed_step_and_position():
    clean = np.tile(np.array([0.0, 1.0], np.float32), 100)
    noisy = FULL.apply(clean, 7, 0.0, 1.0)
    np.testing.assert_array_equal(noisy, FULL.apply(clean, 7, 0.0, 1.0))
    np.testing.assert_array_equal(noisy[:30], FULL.apply(clean[:30], 7, 0.0, 1.0))
    assert np.mean(noisy == FULL.apply(clean, 8, 0.0, 1.0)) < 0.1
    other_seed = dataclasses.replace(FULL, seed=5)
    assert np.mean(noisy == other_seed.apply(clean, 7, 0.0, 1.0)) < 0.1


def test_steps_flip_independently():
    clean = np.zeros(SIZE // 10, np.float32)
    noise = RewardNoise(false_positive=0.5)
    flips = np.stack([noise.apply(clean, step, 0.0, 1.0) for step in range(10)])
    off_diagonal = np.corrcoef(flips)[~np.eye(10, dtype=bool)]
    assert np.abs(off_diagonal).max() < 5.0 / np.sqrt(clean.size)


def test_parts_are_independent():
    clean = np.zeros(SIZE, np.float32)
    flips = RewardNoise(false_positive=0.3).apply(clean, 0, 0.0, 1.0)
    hits = RewardNoise(spike_probability=0.3).apply(clean, 0, 0.0, 1.0)
    normal = RewardNoise(gaussian_std=1.0).apply(clean, 0, 0.0, 1.0)
    parts = [flips, hits != 0.0, np.sign(hits), np.sign(normal), np.abs(normal)]
    correlations = np.corrcoef(np.stack(parts))
    for i, j in [(0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (1, 3), (1, 4), (2, 3), (2, 4)]:
        assert abs(correlations[i, j]) < 5.0 / np.sqrt(SIZE), (i, j)
    # Gaussian noise and spike sizes: over steps, since two equal streams would only agree at the
    # first position (the two laws use up a stream at different speeds).
    pair = [RewardNoise(gaussian_std=1.0), RewardNoise(spike_probability=1.0)]
    signs = [[np.sign(part.apply([0.0], step, 0, 1)[0]) for step in range(400)] for part in pair]
    assert abs(np.corrcoef(signs)[0, 1]) < 5.0 / np.sqrt(400)


def test_empty_batch():
    assert FULL.apply(np.zeros(0, np.float32), 0, 0.0, 1.0).shape == (0,)


def test_reward_range():
    assert RewardNoise().reward_range(0.0, 1.0) == (0.0, 1.0)
    assert RewardNoise(0.5, 0.2).reward_range(-1.0, 1.0) == (-1.0, 1.0)
    assert RewardNoise(gaussian_std=0.1).reward_range(0.0, 1.0) is None
    assert RewardNoise(spike_probability=0.1).reward_range(0.0, 1.0) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("false_positive", 1.1),
        ("false_negative", -0.1),
        ("spike_probability", float("nan")),
        ("gaussian_std", -1.0),
        ("gaussian_std", float("inf")),
        ("spike_df", 0.0),
        ("spike_scale", 0.0),
        ("spike_cut", -1.0),
        ("seed", -1),
        ("seed", 0.5),
    ],
)
def test_bad_field_is_named(field, value):
    with pytest.raises(ValueError, match=f"{field}={value!r} must be"):
        RewardNoise(**{field: value})


def test_bad_call_is_named():
    with pytest.raises(ValueError, match=r"shape \(2, 1\)"):
        FULL.apply(np.zeros((2, 1)), 0, 0.0, 1.0)
    with pytest.raises(ValueError, match="low=1.0 must be below high=1.0"):
        FULL.apply(np.zeros(2), 0, 1.0, 1.0)
    with pytest.raises(ValueError, match="step=-1"):
        FULL.apply(np.zeros(2), -1, 0.0, 1.0)
