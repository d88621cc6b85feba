"""Statistics of a study, against closed forms and numpy."""

import itertools
import math

import numpy as np
import pytest
from _study.statistics import (
    bootstrap,
    percentile,
    sign_flip_test,
    tolerance,
    tolerance_interval,
)


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ([0.4, 0.3, 0.1], 0.3),  # half of it lies halfway between the last two
        ([0.4, 0.2, 0.1], 0.2),  # on a level
        ([0.4, 0.0, 0.4], 0.1),  # the first crossing
        ([0.4, -0.4, 0.0], 0.05),
        ([0.4, 0.5, 0.3], math.inf),
        ([0.4, 0.4, 0.2], 0.4),
    ],
)
def test_tolerance(gains, expected):
    assert tolerance([0.0, 0.2, 0.4], gains) == pytest.approx(expected)


@pytest.mark.parametrize("clean", [0.0, -0.1, math.nan])
def test_without_a_gain_there_is_no_tolerance(clean):
    assert math.isnan(tolerance([0.0, 0.2], [clean, -0.5]))


@pytest.mark.parametrize("levels", [[], [0.1, 0.2], [0.0, 0.2, 0.2], [0.0]])
def test_levels_must_increase_from_0(levels):
    with pytest.raises(ValueError, match="level"):
        tolerance(levels, [0.4, 0.1, 0.0][: max(len(levels), 2)])


def test_tolerance_agrees_with_interpolation_of_falling_gains():
    random = np.random.default_rng(0)
    for _ in range(50):
        levels = np.concatenate([[0.0], np.sort(random.random(4))])
        gains = np.sort(random.random(5))[::-1]
        gains[-1] = 0.0
        expected = np.interp(gains[0] / 2, gains[::-1], levels[::-1])
        assert tolerance(levels.tolist(), gains.tolist()) == pytest.approx(expected)


def test_percentiles_are_values_and_may_be_infinite():
    values = [3.0, math.inf, 1.0, 2.0]
    assert [percentile(values, x) for x in (0.0, 0.25, 0.26, 0.5, 1.0)] == [1, 1, 2, 2, math.inf]
    ordered = np.random.default_rng(1).random(37)
    for share in (0.05, 0.3, 0.95):
        expected = np.quantile(ordered, share, method="inverted_cdf")
        assert percentile(ordered.tolist(), share) == expected


def test_the_bootstrap_of_three_seeds_counts_all_27_resamples():
    values = np.array([[1.0], [2.0], [6.0]])
    found = bootstrap(lambda mean: float(mean[0]), values, mass=0.8)
    means = [np.mean(x) for x in itertools.product((1.0, 2.0, 6.0), repeat=3)]
    assert found.value == 3.0 and found.undefined == 0.0
    assert found.low == np.quantile(means, 0.1, method="inverted_cdf")
    assert found.high == np.quantile(means, 0.9, method="inverted_cdf")


def test_the_bootstrap_of_many_seeds_is_near_the_normal_interval():
    values = np.random.default_rng(2).normal(size=(400, 1))
    found = bootstrap(lambda mean: float(mean[0]), values)
    width = 1.645 * values.std() / math.sqrt(400)
    assert found.low == pytest.approx(found.value - width, abs=0.01)
    assert found.high == pytest.approx(found.value + width, abs=0.01)
    assert found == bootstrap(lambda mean: float(mean[0]), values)


def test_resamples_without_a_gain_are_counted():
    gains = np.array([[0.4, 0.0], [-1.0, -1.0]])  # of 4 resamples only the first seed twice gains
    found = tolerance_interval([0.0, 0.2], gains)
    assert math.isnan(found.value) and found.undefined == 0.75
    assert found.low == found.high == pytest.approx(0.1)


def test_sign_flips_of_few_pairs_are_exact():
    # |1 + 2 - 4| = 1: as large are all sums but none is smaller than 1.
    assert sign_flip_test([1.0, 2.0, 4.0]) == 0.25
    assert sign_flip_test([1.0, 2.0, -4.0]) == 1.0
    assert sign_flip_test([0.0, 0.0]) == 1.0
    assert math.isnan(sign_flip_test([]))
    pairs = np.random.default_rng(3).normal(0.3, 1.0, size=9)
    sums = [abs(np.dot(s, pairs)) for s in itertools.product((-1, 1), repeat=9)]
    assert sign_flip_test(pairs) == np.mean(np.array(sums) >= abs(pairs.sum()) - 1e-9)


def test_sign_flips_of_many_pairs_are_near_the_normal_test():
    pairs = np.random.default_rng(4).normal(0.2, 1.0, size=100)
    z = abs(pairs.sum()) / np.sqrt(np.sum(pairs**2))
    assert sign_flip_test(pairs) == pytest.approx(math.erfc(z / math.sqrt(2)), abs=0.01)
