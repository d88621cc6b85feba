"""Rewards against the mean of the pool that a response was chosen from."""

import numpy as np
from critic_states import random_steps
from tiny import ragged_rollout

from dfpo_jax.advantages.pool import Pool


def test_every_token_has_its_reward_less_the_pools_mean():
    rollout, steps = ragged_rollout(), random_steps()
    pools = np.repeat(np.array([0.1, 0.7, 0.4, 0.9], np.float32), 2)
    found = np.asarray(Pool().build().estimate(None, steps, rollout.replace(baseline=pools)))
    for row in range(8):
        expected = (rollout.rewards[row] - pools[row]) * np.asarray(steps.mask)[row]
        np.testing.assert_allclose(found[row], expected, rtol=1e-6)
    # Rows of a prompt need not sum to 0: their own mean is not the pool's.
    assert abs(found[:2, 0].sum()) > 0.1 or abs(found[4:6, 0].sum()) > 0.1


def test_it_needs_a_pool_and_compares_whole_responses():
    built = Pool().build()
    assert built.needs == {"pool"} and built.whole_response
