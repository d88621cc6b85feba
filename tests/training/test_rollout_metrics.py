"""Metrics of an iteration's responses, against counts by hand."""

import numpy as np
import pytest
from plan_draws import draw, prompts

from dfpo_jax.training.rollout_metrics import rollout_metrics


def rollout(clean, rewards, samples):
    found = draw(prompts(len(clean) // samples), samples, 0).rollout
    clean, rewards = np.asarray(clean, np.float32), np.asarray(rewards, np.float32)
    return found.replace(clean_rewards=clean, rewards=rewards)


def test_rewards_accuracy_and_lengths_are_means_over_responses():
    found = rollout([1, 0, 0.5, 0.25], [2, 0, 0, 0], samples=2)
    mask = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 0]], np.float32)
    found = found.replace(mask=mask, truncated=np.array([True, False, False, False]))
    assert rollout_metrics(found, 0.5) == {
        "rollout/reward": 0.5,
        "rollout/reward_std": pytest.approx(np.sqrt(0.75)),
        "rollout/clean_reward": 0.4375,
        "rollout/accuracy": 0.5,
        "rollout/length": 2.0,
        "rollout/prompt_slots": 2.0,
        "rollout/truncated": 0.25,
        "rollout/zero_variance_groups": 0.5,
    }


def test_groups_without_variance_are_counted_in_the_rewards_that_the_learner_sees():
    seen = [1, 1, 1, 1, 0, 1, 0, 0, 0.5, 0.5, 0.5, 0.5, 0, 0, 0, 1]
    rows = rollout(np.arange(16), seen, samples=4)
    assert rollout_metrics(rows, 1.0)["rollout/zero_variance_groups"] == 0.5
    alone = rollout_metrics(rollout(seen, seen, samples=1), 1.0)
    assert "rollout/zero_variance_groups" not in alone
