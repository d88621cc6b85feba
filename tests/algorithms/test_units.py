"""Value units, which follow a known range or the rewards seen."""

import pytest

from dfpo_jax.algorithms.interface import Observed
from dfpo_jax.algorithms.units import value_units

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
