"""Penalty, scale and clip against closed forms; settings that nothing reads; ranges and words."""

import numpy as np
import pytest
from scored_responses import apply, scored

from dfpo_jax.rewards import Rewards
from dfpo_jax.rewards.clip import Clip
from dfpo_jax.rewards.flip import Flip
from dfpo_jax.rewards.gaussian import Gaussian
from dfpo_jax.rewards.interface import LARGEST, Link, chain
from dfpo_jax.rewards.length import Length
from dfpo_jax.rewards.scale import Scale
from dfpo_jax.rewards.spike import Spike


def test_without_links_rewards_stay_as_they_are_in_an_array_of_their_own():
    clean = np.array([0.0, 0.75, 1.0, 0.01], np.float32)
    link = Rewards().build((0.0, 1.0))
    found = link.apply(clean, scored(clean))
    np.testing.assert_array_equal(found, clean)
    assert found.dtype == np.float32 and not np.shares_memory(found, clean)
    assert (link.range((0.0, 1.0)), link.range(None), link.words) == ((0.0, 1.0), None, "")


def test_the_length_penalty_is_zero_then_linear_then_its_scale():
    lengths = [0, 6, 7, 8, 10]
    found = apply(Length(buffer=4, scale=2.0), np.ones(5), lengths=lengths)
    np.testing.assert_array_equal(found, [1.0, 1.0, 0.5, 0.0, -1.0])
    assert Length(buffer=4, scale=2.0).build().range((0.0, 1.0)) == (-2.0, 1.0)
    assert Length(buffer=4).build().range(None) is None


def test_the_buffer_may_be_a_share_of_the_limit():
    """Of limits that it divides a share is a buffer; of others, DAPO's formula with a fraction."""
    lengths = [0, 6, 7, 8, 10]
    share, buffer = (apply(x, np.ones(5), lengths=lengths) for x in (Length(share=0.4), Length(4)))
    np.testing.assert_allclose(share, buffer, atol=1e-6)
    found = apply(Length(share=0.25), np.ones(3), lengths=[7, 8, 10])  # C = 2.5
    np.testing.assert_allclose(found, [1.0, 0.8, 0.0], atol=1e-6)
    for limit in range(1, 30):
        responses = scored(np.ones(1), lengths=[limit])._replace(limit=limit)
        assert Length(share=0.2).build().apply(responses.clean, responses) == 0.0
    assert Length(share=0.25, scale=0.5).build().range((0.0, 1.0)) == (-0.5, 1.0)
    with pytest.raises(ValueError, match="share is 0.2; buffer is 4, which replaces it, so it mus"):
        Length(buffer=4, share=0.2)


def test_a_factor_multiplies_rewards_range_and_unit():
    link = Scale(2.5).build()
    np.testing.assert_array_equal(apply(Scale(2.5), [-1.0, 0.0, 2.0]), [-2.5, 0.0, 5.0])
    with pytest.raises(ValueError, match="factor is 0.0; it must be above 0"):
        Scale(0.0)
    assert (link.range((-1.0, 2.0)), link.range(None), link.unit) == ((-2.5, 5.0), None, 2.5)


def test_a_clip_cuts_rewards_and_range():
    link = Clip(1.5).build()
    np.testing.assert_array_equal(apply(Clip(1.5), [-9.0, -1.0, 1.5, 2.0]), [-1.5, -1, 1.5, 1.5])
    assert link.range(None) == (-1.5, 1.5)
    assert link.range((0.0, 9.0)) == (0.0, 1.5) and link.range((0.0, 1.0)) == (0.0, 1.0)
    assert link.range((0.0, 0.0)) == (0.0, 0.0)  # a factor of 0 before it
    for bounds in ((2.0, 3.0), (1.5, 3.0), (-3.0, -1.5)):
        with pytest.raises(ValueError, match=r"rewards.clip.bound is 1.5; rewards lie in"):
            link.range(bounds)


def test_links_act_in_the_order_of_the_fields_each_on_the_range_of_its_input():
    seen = []

    def probe(factor):
        def act(rewards, responses):
            seen.append(responses.range)
            return rewards * np.float32(factor)

        return Link(act, lambda bounds: tuple(factor * end for end in bounds), f"x{factor}", factor)

    clean = np.array([0.0, 1.0], np.float32)
    responses = scored(clean, (0.0, 1.0))
    both = chain([probe(2), Length(4, 1.0).build(), probe(3)])
    found = both.apply(clean, responses._replace(lengths=np.array([10, 10])))
    np.testing.assert_array_equal(found, [-3.0, 3.0])  # (2 r - 1) 3
    assert seen == [(0.0, 1.0), (-1.0, 2.0)] and both.range((0.0, 1.0)) == (-3.0, 6.0)
    assert both.unit == 6 and both.words.startswith("x2; ") and both.words.endswith("; x3")
    nested = chain([chain([probe(2)]), chain([probe(3)])])  # a chain is a link
    np.testing.assert_array_equal(nested.apply(clean, responses), [0.0, 6.0])


def test_the_range_of_the_whole_section():
    def bounds(task=(0.0, 1.0), **sections):
        return Rewards(**sections).build(task).range(task)

    assert bounds(flip=Flip(0.5, 0.2), task=(-1.0, 1.0)) == (-1.0, 1.0)
    assert bounds(gaussian=Gaussian(0.1)) is bounds(spike=Spike(0.1)) is bounds(None) is None
    assert bounds(gaussian=Gaussian(0.1), clip=Clip(3.0)) == (-3.0, 3.0)
    shaped = {"length": Length(4, 1.0), "scale": Scale(2.0)}
    assert bounds(**shaped) == (-2.0, 2.0) and bounds(**shaped, clip=Clip(1.0)) == (-1.0, 1.0)


def test_words_say_what_acts():
    rewards = Rewards(
        flip=Flip(0.2, 0.125),
        gaussian=Gaussian(0.5),
        spike=Spike(0.1),
        length=Length(4, 2.0),
        scale=Scale(0.5),
        clip=Clip(3.0),
    )
    assert rewards.build((0.0, 1.0)).words.split("; ") == [
        "20% of wrong responses were rewarded as right",
        "12.5% of right responses were rewarded as wrong",
        "Gaussian noise of standard deviation 0.5 was added",
        "10% of rewards got a heavy-tailed spike, 2 times a Student t with 1.5 degrees of "
        "freedom, cut at \u00b120",
        "responses within 4 tokens of the length limit lost up to 2",
        "rewards were multiplied by 0.5",
        "rewards were clipped at \u00b13",
    ]


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        (Flip, "false_positive", 1.1),
        (Flip, "false_negative", -0.1),
        (Flip, "seed", -1),
        (Gaussian, "std", -1.0),
        (Gaussian, "std", float("inf")),
        (Gaussian, "seed", -1),
        (Spike, "probability", float("nan")),
        (Spike, "df", 0.0),
        (Spike, "scale", 0.0),
        (Spike, "cut", -1.0),
        (Spike, "cut", float("inf")),
        (Length, "buffer", -1),
        (Length, "share", -0.1),
        (Length, "share", 1.5),
        (Length, "scale", -1.0),
        (Length, "scale", float("nan")),
        (Scale, "factor", -0.5),
        (Scale, "factor", float("inf")),
        (Clip, "bound", -1.0),
        (Clip, "bound", 2 * LARGEST),
    ],
)
def test_a_value_outside_its_range_is_named(section, field, value):
    with pytest.raises(ValueError, match=rf"^{field} is {value}; it must lie in \["):
        section(**{field: value})


@pytest.mark.parametrize(
    ("section", "field", "value", "reader"),
    [
        (Flip, "seed", 3, "false_positive and false_negative are 0"),
        (Gaussian, "seed", 3, "std is 0"),
        (Spike, "df", 3.0, "probability is 0"),
        (Spike, "scale", 3.0, "probability is 0"),
        (Spike, "cut", 3.0, "probability is 0"),
        (Spike, "seed", 3, "probability is 0"),
        (Length, "scale", 3.0, "buffer and share are 0"),
        (Rewards, "custom", {"a": 1}, "name is empty"),
    ],
)
def test_a_setting_that_nothing_reads_is_refused(section, field, value, reader):
    with pytest.raises(ValueError) as refused:
        section(**{field: value})
    default = getattr(section(), field)
    assert str(refused.value) == (
        f"{field} is {value!r}; nothing reads it while {reader}, so it must be left at {default!r}"
    )


FLIP, SPIKE = {"false_positive": 0.3, "false_negative": 0.4}, (0.3, 1.2, 0.7, 3.0)
CLEAN = [0.0, 1.0, 0.0, 1.0, 0.25, 0.75, 1.0, 0.0]


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"flip": Flip(**FLIP, seed=11)}, [0.0, 0.0, 0.0, 1.0, 0.25, 0.75, 0.0, 0.0]),
        (
            {"gaussian": Gaussian(0.37, seed=11)},
            [-0.0350218266, 0.994676352, 0.349695325, 0.167705953]
            + [0.0415975153, 0.390417218, 1.40621018, 0.0873826295],
        ),
        (
            {"spike": Spike(*SPIKE, seed=11)},
            [0.0, 1.0, -2.41738868, 1.0, 0.25, 0.85717994, -2.0, 0.0],
        ),
        (
            {
                "flip": Flip(**FLIP, seed=11),
                "gaussian": Gaussian(0.37, seed=11),
                "spike": Spike(*SPIKE, seed=11),
                "length": Length(6, 0.3),
                "clip": Clip(1.1),
            },
            [-0.0350218266, -0.00532366754, -1.10000002, 0.0677059442]
            + [-0.108402491, 0.29759711, -1.10000002, -0.212617382],
        ),
    ],
    ids=["flip", "gaussian", "spike", "all"],
)
def test_the_rewards_of_a_seed_stay_what_they_were(sections, expected):
    """Random numbers of a version are those of the next: a run resumes with the same rewards."""
    responses = scored(CLEAN, step=6, lengths=range(1, 9))._replace(limit=8)
    found = Rewards(**sections).build((0.0, 1.0)).apply(responses.clean, responses)
    np.testing.assert_array_equal(found, np.array(expected, np.float32))
    assert found.dtype == np.float32


def test_the_clean_range_of_a_chain_leaves_noise_and_penalties_out():
    links = [
        Flip(0.2, 0.1).build(),
        Gaussian(2.0).build(),
        Spike(0.1).build(),
        Length(buffer=4, scale=2.0).build(),
        Scale(3.0).build(),
    ]
    built = chain(links)
    assert built.range((0.0, 1.0)) is None and built.clean((0.0, 1.0)) == (0.0, 3.0)
    assert chain([*links, Clip(2.0).build()]).clean((0.0, 1.0)) == (0.0, 2.0)
    own = Link(lambda r, s: r, lambda b: None, unit=10.0)
    assert chain([own, Scale(0.5).build()]).clean((-1.0, 2.0)) == (-5.0, 10.0)
    told = own._replace(clean=lambda bounds: (7.0, 9.0))
    assert chain([told, Scale(0.5).build()]).clean((-1.0, 2.0)) == (3.5, 4.5)
    assert Rewards().build((0.0, 1.0)).clean((0.0, 1.0)) == (0.0, 1.0)
