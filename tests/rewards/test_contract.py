"""What every registered link keeps to, by a run over the fields of the section."""

import dataclasses

import numpy as np
import pytest
from scored_responses import scored

from dfpo_jax.rewards import Rewards
from dfpo_jax.rewards.check import check_link
from dfpo_jax.rewards.interface import chain

# Settings under which each link acts, with numbers that float32 must round.
ON = {
    "flip": {"false_positive": 0.3, "false_negative": 0.3, "seed": 3},
    "gaussian": {"std": 0.3, "seed": 3},
    "spike": {"probability": 0.3, "seed": 3},
    "correction": {"false_positive": 0.1, "false_negative": 0.3},
    "length": {"buffer": 7, "scale": 0.3},
    "scale": {"factor": 0.7},
    "clip": {"bound": 0.6},
}
# What acts only after it has begun on a policy, in tests of its own.
OF_THE_FIRST_POLICY = {"votes", "learned"}
FIELDS = [part.name for part in dataclasses.fields(Rewards) if part.name not in ("name", "custom")]
LINKS = [name for name in FIELDS if name not in OF_THE_FIRST_POLICY]
RANGES = [(0.0, 1.0), (-0.1, 0.7), (0.1, 0.3), None]


def build(name):
    return type(getattr(Rewards(), name))(**ON[name]).build()


def grid(bounds, size=231):
    """Rewards over a range, its ends included; 231 goes through all lengths."""
    return np.linspace(*(bounds or (-5.0, 5.0)), size, dtype=np.float32)


def ranges(link):
    """The ranges that a link accepts."""
    accepted = []
    for bounds in RANGES:
        try:
            link.range(bounds)
        except ValueError:
            continue
        accepted.append(bounds)
    assert accepted
    return accepted


def assert_inside(rewards, bounds):
    assert np.isfinite(rewards).all()
    if bounds is not None:
        assert np.float32(bounds[0]) <= rewards.min() and rewards.max() <= np.float32(bounds[1])


def test_every_link_has_settings_here():
    assert set(ON) == set(LINKS)


@pytest.mark.parametrize("name", FIELDS)
def test_a_link_is_off_by_default(name):
    assert getattr(Rewards(), name).build() is None


@pytest.mark.parametrize("name", LINKS)
def test_a_link_is_pure_and_stays_inside_its_range(name):
    link = build(name)
    changed = False
    for bounds in ranges(link):
        for step, round in ((0, 0), (5, 0), (5, 2)):
            responses = scored(grid(bounds), bounds, step, round)
            given = responses.clean.copy()
            found = link.apply(given, responses)
            np.testing.assert_array_equal(given, responses.clean)
            np.testing.assert_array_equal(found, link.apply(given, responses))
            assert type(found) is np.ndarray and found.dtype == np.float32
            assert found.shape == given.shape
            assert_inside(found, link.range(bounds))
            changed |= bool(np.any(found != given))
    assert changed and link.words


@pytest.mark.parametrize("name", LINKS)
def test_entry_i_does_not_depend_on_the_number_of_responses(name):
    link = build(name)
    for bounds in ranges(link):
        rewards = grid(bounds)
        whole = link.apply(rewards, scored(rewards, bounds, 3))
        for size in (0, 1, 17):
            part = link.apply(rewards[:size], scored(rewards[:size], bounds, 3))
            np.testing.assert_array_equal(part, whole[:size])


@pytest.mark.parametrize("name", LINKS)
def test_a_registered_link_passes_the_check_of_links_of_the_user(name):
    link = build(name)
    for bounds in ranges(link):
        check_link(link, f"rewards:{name}", bounds)


@pytest.mark.parametrize("bounds", RANGES)
@pytest.mark.parametrize("first", LINKS)
def test_a_range_composes_with_any_other_link(first, bounds):
    for second in LINKS:
        links = [build(first), build(second)]
        try:
            expected = links[1].range(links[0].range(bounds))
        except ValueError as error:
            with pytest.raises(ValueError, match="^rewards") as refused:
                chain(links).range(bounds)
            assert str(refused.value) == str(error)
            continue
        both = chain(links)
        assert both.range(bounds) == expected
        rewards = grid(bounds)
        responses = scored(rewards, bounds, 4)
        found = both.apply(rewards, responses)
        assert_inside(found, expected)
        middle = links[0].apply(rewards, responses)
        inner = responses._replace(range=links[0].range(bounds))
        np.testing.assert_array_equal(found, links[1].apply(middle, inner))


@pytest.mark.parametrize("bounds", RANGES[:3])
def test_the_ends_of_a_range_without_noise_are_reached(bounds):
    rewards = grid(bounds)
    for name in ("correction", "length", "scale", "clip"):
        link = build(name)
        low, high = link.range(bounds)
        rows = scored(rewards, bounds, lengths=np.full(len(rewards), 10))
        assert np.float32(low) == link.apply(rewards, rows).min()
        rows = rows._replace(lengths=np.zeros(len(rewards), int))
        assert np.float32(high) == link.apply(rewards, rows).max()
