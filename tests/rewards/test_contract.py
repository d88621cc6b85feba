"""What every registered link keeps to, by a run over the fields of the section."""

import dataclasses

import numpy as np
import pytest
import scored_responses

from dfpo_jax.rewards import Rewards
from dfpo_jax.rewards.check import check_link
from dfpo_jax.rewards.interface import chain
from dfpo_jax.tasks.base import Item

# Settings under which each link acts, with numbers that float32 must round: "flip group" is a
# second case of "flip".
FLIP = {"false_positive": 0.3, "false_negative": 0.3, "seed": 3}
ON = {
    "flip": FLIP,
    "flip group": FLIP | {"unit": "group"},
    "flip prompt": FLIP | {"unit": "prompt"},
    "master_key": {"answer": "b", "coverage": 0.6},
    "majority": {"threshold": 0.5},
    "gaussian": {"std": 0.3, "seed": 3},
    "gaussian share": {"std": 0.3, "share": 0.4},
    "gaussian pattern": {"std": 0.3, "pattern": "[1-5]$"},
    "spike": {"probability": 0.3, "seed": 3},
    "correction": {"false_positive": 0.1, "false_negative": 0.3},
    "length": {"buffer": 7, "scale": 0.3},
    "feature": {"bonus": 0.3, "text": "b"},
    "feature disliked": {"bonus": -0.7, "kind": "count", "text": "b", "most": 3},
    "feature length": {"bonus": 0.3, "kind": "length"},
    "scale": {"factor": 0.7},
    "squash": {"scale": 0.3},
    "clip": {"bound": 0.6},
    "rank": {"within": "batch"},
    "rank group": {"within": "group"},
}
# What these make of a response depends on the others.
OF_THE_BATCH = {"majority", "rank", "rank group"}
# What acts only after it has begun on a policy, in tests of its own.
OF_THE_FIRST_POLICY = {"votes", "learned"}
FIELDS = [part.name for part in dataclasses.fields(Rewards) if part.name not in ("name", "custom")]
LINKS = list(ON)
RANGES = [(0.0, 1.0), (-0.1, 0.7), (0.1, 0.3), None]


def build(name):
    return type(getattr(Rewards(), name.split()[0]))(**ON[name]).build()


def scored(rewards, *place, **options):
    """Four responses to each prompt, two or three of which have one answer."""
    found = scored_responses.scored(rewards, *place, **options)
    rows = range(len(rewards))
    items = [Item(f"p{i // 4}", "a") for i in rows]
    return found._replace(
        items=items, texts=[["b", "a", "bb", "b"][(i + i // 4) % 4] for i in rows]
    )


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
    assert {name.split()[0] for name in ON} == set(FIELDS) - OF_THE_FIRST_POLICY


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


@pytest.mark.parametrize("name", [name for name in LINKS if name not in OF_THE_BATCH])
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
    for name in ("correction", "length", "scale", "squash", "clip", "rank"):
        link = build(name)
        low, high = link.range(bounds)
        rows = scored(rewards, bounds, lengths=np.full(len(rewards), 10))
        assert np.float32(low) == link.apply(rewards, rows).min()
        rows = rows._replace(lengths=np.zeros(len(rewards), int))
        assert np.float32(high) == link.apply(rewards, rows).max()
