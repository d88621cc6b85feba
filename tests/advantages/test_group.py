"""GRPO, Dr. GRPO and RLOO against loops over responses."""

import dataclasses

import numpy as np
import pytest
from critic_states import random_steps
from tiny import ragged_rollout

from dfpo_jax.advantages import Advantages, Group


def relative(rewards, size, baseline, normalize):
    """A loop over responses."""
    out = []
    for k, reward in enumerate(rewards):
        group = [float(x) for x in rewards[k - k % size : k - k % size + size]]
        others = group[: k % size] + group[k % size + 1 :]
        if baseline == "leave_one_out":
            out.append(reward - np.mean(others))
        else:
            deviation = np.std(group, ddof=1) + 1e-6 if normalize else 1.0
            out.append((reward - np.mean(group)) / deviation)
    return np.array(out)


@pytest.mark.parametrize("samples", [2, 4])
@pytest.mark.parametrize(
    "group", [Group(), Group(normalize=False), Group("leave_one_out", normalize=False)]
)
def test_every_token_has_its_response_advantage(group, samples):
    rollout, steps = dataclasses.replace(ragged_rollout(), samples=samples), random_steps()
    found = group.build().estimate(None, steps, rollout)
    expected = relative(rollout.rewards, samples, group.baseline, group.normalize)
    np.testing.assert_allclose(found, expected[:, None] * steps.mask, rtol=1e-4, atol=1e-5)
    assert np.ptp(expected) > 0.1


def test_it_needs_groups_and_compares_whole_responses():
    built = Group().build()
    assert built.needs == {"groups"} and built.whole_response


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"baseline": "median"}, "baseline is 'median'; it must be one of mean, leave_one_out"),
        ({"baseline": "leave_one_out"}, "only 'mean' is normalised"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Group(**options)


def test_an_unknown_advantage_is_named():
    with pytest.raises(ValueError, match="name is 'td'; it must be one of gae, sigma, precision, "):
        Advantages("td")
