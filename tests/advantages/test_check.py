"""What is refused of an advantage of the user's own, before anything compiles."""

import jax.numpy as jnp
import pytest
from wrong_parts import refused

from dfpo_jax.advantages import Advantage, Gae, check_advantage

GAE = Gae().build()


def zeros(view, steps, rollout):
    return 0 * steps.rewards


def spread(view, steps, rollout):
    return jnp.std(view.law[:, :-1], axis=-1)


def between(view, steps, rollout):
    """Reads two quantiles, which a critic of one value has not."""
    low, high = jnp.split(view.law[:, :-1], [1], axis=-1)
    return (high - low)[..., 0]


def others(view, steps, rollout):
    """Needs groups."""
    return rollout.rewards.reshape(-1, 2).mean(axis=1)[rollout.groups][:, None] * steps.mask


def alone(view, steps, rollout):
    return {1: zeros(view, steps, rollout)}[rollout.samples]


VALUE, LAW = frozenset({"value"}), frozenset({"law"})


@pytest.mark.parametrize(
    "advantage",
    [GAE, Advantage(zeros), Advantage(spread, LAW), Advantage(others, frozenset({"groups"}))],
)
def test_a_right_advantage_passes(advantage):
    check_advantage(advantage, "m:A")


@pytest.mark.parametrize(
    ("advantage", "said"),
    [
        (None, "build returned NoneType; it must return a dfpo_jax.advantages.interface.Advantage"),
        (Advantage("gae"), "estimate is 'gae'; it must be a function"),
        (Advantage(zeros, {"value"}), "needs is {'value'}; it must be a frozenset of names"),
        (Advantage(zeros, whole_response=1), "whole_response is 1; it must be True or False"),
        (Advantage(lambda view, steps: 0), "estimate raised TypeError: "),
        (Advantage(spread), "estimate raised AttributeError: 'NoneType' object has no attribute"),
        (Advantage(between, VALUE), "estimate raised IndexError: "),
        (Advantage(alone), "estimate raised KeyError: 2"),
        (
            Advantage(lambda v, s, r: r.rewards),
            "estimate returned float32 (2,); it must return flo",
        ),
        (
            Advantage(lambda v, s, r: v.law[..., 0], VALUE),
            "estimate returned float32 (2, 4); it must return floats [B, R] (here (2, 3))",
        ),
        (
            Advantage(lambda v, s, r: s.mask > 0),
            "estimate returned bool (2, 3); it must return flo",
        ),
        (Advantage(lambda v, s, r: r.tokens), "estimate returned int32 (2, 3); it must return flo"),
        (Advantage(lambda v, s, r: [s.rewards]), "estimate returned list; it must return floats"),
        (Advantage(lambda v, s, r: (s.rewards).T), "estimate returned float32 (3, 2); it must"),
        (Advantage(lambda v, s, r: float(s.rewards[0, 0])), "estimate raised Concretization"),
    ],
)
def test_what_breaks_the_interface_is_one_line(advantage, said):
    assert refused(f"m:A: {said}", check_advantage, advantage, "m:A")
