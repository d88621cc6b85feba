"""The chain gives what `RewardNoise`, `LengthPenalty` and `clipped_rewards` gave, bit by bit."""

from types import SimpleNamespace

import numpy as np
import pytest
from scored_responses import LIMIT, scored

from dfpo_jax.algorithms.policy import clipped_rewards
from dfpo_jax.rewards import Rewards
from dfpo_jax.rewards.clip import Clip
from dfpo_jax.rewards.flip import Flip
from dfpo_jax.rewards.gaussian import Gaussian
from dfpo_jax.rewards.length import Length
from dfpo_jax.rewards.spike import Spike
from dfpo_jax.rollout.collect import LengthPenalty
from dfpo_jax.tasks.noise import RewardNoise

FLIP = {"false_positive": 0.3, "false_negative": 0.4}
SPIKE = {"probability": 0.3, "df": 1.2, "scale": 0.7, "cut": 3.0}


@pytest.mark.parametrize(
    "on", [{"flip"}, {"gaussian"}, {"spike"}, {"flip", "gaussian", "spike", "length", "clip"}]
)
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-0.3, 0.7)])
def test_rewards_are_those_of_before(on, bounds):
    seed, step, rows = 11, 6, 500
    clean = np.random.default_rng(0).uniform(*bounds, rows).astype(np.float32)
    noise, sections = {"seed": seed}, {}
    if "flip" in on:
        noise |= FLIP
        sections["flip"] = Flip(**FLIP, seed=seed)
    if "gaussian" in on:
        noise |= {"gaussian_std": 0.37}
        sections["gaussian"] = Gaussian(0.37, seed=seed)
    if "spike" in on:
        noise |= {f"spike_{name}": value for name, value in SPIKE.items()}
        sections["spike"] = Spike(**SPIKE, seed=seed)
    penalty, clip = LengthPenalty(), 0.0
    if "length" in on:
        penalty, sections["length"] = LengthPenalty(6, 0.3), Length(6, 0.3)
        clip, sections["clip"] = 1.1, Clip(1.1)
    responses = scored(clean, bounds, step)
    old = RewardNoise(**noise).apply(clean, step, *bounds) + penalty(responses.lengths, LIMIT)
    old = clipped_rewards(SimpleNamespace(reward_clip=clip), SimpleNamespace(rewards=old))
    found = Rewards(**sections).build(bounds).apply(clean, responses)
    np.testing.assert_array_equal(found, np.asarray(old))
    assert found.dtype == np.float32
