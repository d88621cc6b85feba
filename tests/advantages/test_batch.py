"""The return of every token against loops over tokens."""

import dataclasses

import jax
import numpy as np
import pytest
import reference
from critic_states import random_steps
from tiny import Markov, make_state, ragged_rollout

from dfpo_jax import ops
from dfpo_jax.advantages import View
from dfpo_jax.advantages.batch import Batch
from dfpo_jax.algorithms import compose
from dfpo_jax.training.config import parse_config


def to_go(rewards, mask, discount, end):
    """A loop over the tokens that count, from the last one back."""
    out = np.zeros_like(rewards)
    for row in range(len(rewards)):
        total = end[row]
        for token in reversed(range(rewards.shape[1])):
            if mask[row, token]:
                total = rewards[row, token] + discount * total
                out[row, token] = total
    return out


@pytest.mark.parametrize("discount", [1.0, 0.8])
def test_it_is_the_reward_to_go(discount):
    steps = dataclasses.replace(random_steps(), discount=discount)
    rewards, mask = np.asarray(steps.rewards), np.asarray(steps.mask)
    found = Batch().build().estimate(None, steps, None)
    expected = to_go(rewards, mask, discount, np.zeros(len(mask)))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.ptp(expected) > 0.1
    # Whitened, it is compared with every token of the batch.
    whitened = ops.masked_whiten(found, steps.mask)
    np.testing.assert_allclose(whitened, reference.masked_whiten(expected, mask), atol=1e-4)


def test_a_response_that_goes_on_ends_with_the_critics_mean():
    steps = random_steps()
    assert np.asarray(steps.bootstrap).any()
    law = np.random.default_rng(0).normal(size=(8, 6, 3)).astype(np.float32)
    found = Batch().build().estimate(View(law, None), steps, None)
    mask, end = np.asarray(steps.mask), np.zeros(8)
    for row in np.flatnonzero(steps.bootstrap):
        end[row] = law[row, np.flatnonzero(mask[row]).max(initial=-1) + 1].mean()
    expected = to_go(np.asarray(steps.rewards), mask, steps.discount, end)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_the_preset_has_the_kl_in_the_reward_and_one_baseline_for_the_batch():
    """A_t = r - beta sum over k >= t of (log pi - log pi_ref), whitened over all tokens."""
    config = parse_config({"algorithm": "reinforce_pp"}).algorithm_config()
    algorithm, rollout = compose(Markov(), config, 1.0), ragged_rollout()
    state = make_state(algorithm, kl_coefficient=0.2)
    batch, _ = jax.jit(algorithm.prepare)(state, rollout, jax.random.key(0))
    mask = np.asarray(batch.mask)
    kl = (np.asarray(batch.old_log_probs) - np.asarray(batch.ref_log_probs)) * mask
    assert np.abs(kl).max() > 0.1
    left = np.cumsum(kl[:, ::-1], axis=1)[:, ::-1]
    expected = reference.masked_whiten((rollout.rewards[:, None] - 0.2 * left) * mask, mask)
    np.testing.assert_allclose(batch.advantages, expected, atol=2e-4)


def test_it_needs_neither_a_critic_nor_groups_and_reads_rewards_of_tokens():
    built = Batch().build()
    assert built.needs == frozenset() and not built.whole_response
