"""Value units, which follow a known range or the rewards seen."""

import numpy as np
import pytest

from dfpo_jax.algorithms.interface import Observed
from dfpo_jax.algorithms.units import low_difference, value_units

FIRST = {"value_shift": 0.0, "value_scale": 1.0, "kl_coefficient": 0.3}


def units(*inputs, controls=FIRST, **options):
    found = value_units(controls, Observed(*inputs, **options))
    assert set(found) == {"value_shift", "value_scale"}
    return found["value_shift"], found["value_scale"]


def test_a_known_range_gives_its_middle_and_half_its_width():
    assert units([0.0, 5.0], (0.0, 1.0)) == (0.5, 0.5)
    later = {"value_shift": 7.0, "value_scale": 9.0}
    assert units([0.0, 5.0], (-3.0, 1.0), controls=later, first=False) == (-1.0, 2.0)


def test_without_a_range_they_follow_the_rewards_seen():
    rewards = [float(x) for x in range(11)]
    assert units(rewards) == (5.0, 4.0)
    later = {"value_shift": 5.0, "value_scale": 4.0}
    shift, scale = units([2 * x + 20.0 for x in rewards], controls=later, first=False)
    assert shift == pytest.approx(0.95 * 5 + 0.05 * 30)
    assert scale == pytest.approx(0.95 * 4 + 0.05 * 8)


def test_rewards_that_are_nearly_equal_do_not_shrink_the_scale():
    assert units([2.0, 2.0]) == (2.0, pytest.approx(1e-3))
    rewards = [0.0] * 98 + [1.0, 40.0]
    assert units(rewards, least_scale=0.5) == (0.0, 0.5)


def asinh_units(*inputs, controls=FIRST, **options):
    found = value_units(controls, Observed(*inputs, **options), "asinh")
    return found["value_shift"], found["value_scale"]


def test_asinh_units_have_the_scale_of_clean_rewards_however_far_noise_goes():
    far = np.random.default_rng(0).normal(size=200) * 50
    assert asinh_units(far, clean_range=(0.0, 1.0)) == (0.5, 0.5)
    assert asinh_units(far, (-40.0, 41.0), clean_range=(-2.0, 4.0), first=False) == (1.0, 3.0)
    assert units(far, (-40.0, 41.0), clean_range=(0.0, 1.0)) == (0.5, 40.5)


def test_without_a_declared_range_they_follow_the_differences_of_rewards_with_little_noise():
    rng = np.random.default_rng(0)
    quiet = rng.integers(0, 2, 500).astype(float)
    noisy = rng.integers(0, 2, 500) + 12.0 * rng.normal(size=500)
    rewards = np.concatenate([quiet, noisy])
    shift, scale = asinh_units(rewards)
    assert (shift, scale) == (np.median(rewards), 0.5)
    assert units(rewards)[1] > 4.0  # in which 0 and 1 lie close together
    later = {"value_shift": 1.0, "value_scale": 2.0}
    shift, scale = asinh_units(rewards, controls=later, first=False)
    assert shift == pytest.approx(0.95 + 0.05 * np.median(rewards))
    assert scale == pytest.approx(0.95 * 2.0 + 0.05 * 0.5)
    assert asinh_units([2.0, 2.0], least_scale=0.25) == (2.0, 0.25)


def test_the_low_difference_is_a_quantile_over_pairs_of_unequal_rewards():
    rewards = np.random.default_rng(1).normal(size=40).round(1)
    pairs = [abs(x - y) for x in rewards for y in rewards if x != y]
    assert low_difference(rewards) == pytest.approx(np.quantile(pairs, 0.1))
    assert low_difference([3.0]) == 0.0
    many = np.random.default_rng(2).normal(size=20_000)  # |x - y| is sqrt(2) |N|: .1257 sqrt(2)
    assert low_difference(many) == pytest.approx(0.1257 * 2**0.5, rel=0.02)
    assert low_difference(10 * many) == pytest.approx(10 * low_difference(many))
