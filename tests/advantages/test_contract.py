"""What every registered advantage keeps to; and that the contract sees what breaks it."""

import jax.numpy as jnp
import pytest
from wrong_parts import Given, refused

from dfpo_jax import contracts
from dfpo_jax.advantages import Advantage, Advantages, Gae, Group, Rank, Risk, Sigma, TailAware

# Settings that take other branches than the default ones.
OTHERS = {
    "gae, cvar": Gae(length_adaptive_alpha=0.2, risk=Risk("cvar", alpha=0.3)),
    "gae, wang": Gae(lambda_=0.0, risk=Risk("wang")),
    "sigma, mean and cvar": Sigma(length_adaptive_alpha=0.2, risk=Risk("mean_cvar"), floor=0.01),
    "rank, adaptive": Rank(length_adaptive_alpha=0.2),
    "tail aware, lower": TailAware(length_adaptive_alpha=0.2, tail=0.1, side="lower"),
    "group, not normalised": Group(normalize=False),
    "group, leave one out": Group("leave_one_out", normalize=False),
}


@pytest.mark.parametrize(
    "settings",
    [pytest.param(part, id=name) for name, part in (Advantages().parts | OTHERS).items()],
)
def test_an_advantage_keeps_the_contract(settings):
    assert contracts.advantage(settings) is None


def mean_reward(view, steps, rollout):
    """Minus the mean over the response; of none it is 0 / 0."""
    mean = jnp.sum(steps.rewards * steps.mask, axis=1) / jnp.sum(steps.mask, axis=1)
    return (steps.rewards - mean[:, None]) * steps.mask


def deviation(view, steps, rollout):
    """By the unbiased deviation of all tokens; of one token it is 0 / 0."""
    count = jnp.sum(steps.mask)
    centred = (
        steps.rewards - jnp.sum(steps.rewards * steps.mask) / jnp.maximum(count, 1)
    ) * steps.mask
    variance = jnp.sum(jnp.square(centred)) / jnp.where(count > 0, count - 1, 1)
    return centred / jnp.sqrt(variance)


def to_go(view, steps, rollout):
    """Rewards to go, those outside the mask too."""
    return jnp.cumsum(steps.rewards[:, ::-1], axis=1)[:, ::-1]


def next_value(view, steps, rollout):
    """Takes the state in the next slot for the next state."""
    values = jnp.mean(view.law, axis=-1)
    return steps.rewards + values[:, 1:] - values[:, :-1]


def logarithm(view, steps, rollout):
    """Infinite outside the mask: NaN once it is multiplied by it."""
    return jnp.log(steps.mask)


def tokens(view, steps, rollout):
    return jnp.sum(rollout.tokens, axis=1, keepdims=True) * steps.mask


def spread(view, steps, rollout):
    """By the law's own spread, which may be none."""
    return steps.rewards * steps.mask / jnp.std(view.law[:, :-1], axis=-1)


def of_group(view, steps, rollout):
    """By the deviation of a prompt's rewards, which may be none."""
    rewards = rollout.rewards.reshape(-1, 2)
    units = (rewards - rewards.mean(axis=1, keepdims=True)) / rewards.std(axis=1, keepdims=True)
    return units.reshape(-1, 1) * steps.mask


FINITE = "estimate must be finite, outside the mask and in empty rows too"
JUNK = "estimate must not change with what lies outside the mask or in empty rows"
VALUE = frozenset({"value"})


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (Advantage(mean_reward), FINITE),
        (Advantage(deviation), FINITE),
        (Advantage(logarithm), FINITE),
        (Advantage(spread, frozenset({"law"})), FINITE),
        (Advantage(of_group), FINITE),
        (Advantage(to_go), JUNK),
        (Advantage(next_value, VALUE), JUNK),
        (Advantage(tokens), JUNK),
        (
            Advantage(
                lambda v, s, r: jnp.mean(v.returns(1.0), axis=(1, 2))[:, None] * s.mask, VALUE
            ),
            JUNK,
        ),
        (
            Advantage(lambda v, s, r: v.law[..., 0], VALUE),
            "estimate returned float32 (2, 4); it must",
        ),
    ],
)
def test_what_breaks_the_contract_is_seen(part, said):
    assert refused(f"Given: {said}", contracts.advantage, Given(part), error=AssertionError)
