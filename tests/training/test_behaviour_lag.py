"""The policy that samples may be behind the one that trains."""

import jax
import numpy as np
import pytest
from tiny_run import tiny

from dfpo_jax.training import loop
from dfpo_jax.training.config import parse_config
from dfpo_jax.training.rollouts import Rollouts
from dfpo_jax.training.run import INIT, build_run
from dfpo_jax.training.update import sampling_policy
from dfpo_jax.training.warm_start import first_policy


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.slow
def test_rollouts_come_from_the_policy_of_so_many_iterations_ago(rank):
    config = tiny(iterations=5, behaviour_lag=2)
    config.warm_start.steps = 0
    config.algorithm = "ppo"
    config.model.lora.rank = rank
    run = build_run(parse_config(config))
    state = run.learner.start(jax.random.fold_in(run.key, INIT), first_policy(run))
    policies, sampled = [], []
    for _ in range(4):
        policies.append(jax.device_get(state.params["policy"]))
        sampled.append(jax.device_get(sampling_policy(state)))
        state, metrics, _ = loop.iteration(run, state, Rollouts(run))
    assert len(state.past) == 2
    for step, found in enumerate(sampled):
        expected = policies[max(step - 2, 0)]
        for x, y in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            np.testing.assert_array_equal(x, y)
    # The policy has moved, so that the sampler is another one.
    assert any(
        np.any(x != y)
        for x, y in zip(*map(jax.tree.leaves, (sampled[-1], policies[-1])), strict=True)
    )


def test_without_a_lag_the_state_holds_no_copies():
    config = tiny()
    config.algorithm = "ppo"
    state = build_run(parse_config(config)).learner.abstract_state
    assert state.past == () and sampling_policy(state) is state.params["policy"]
