"""VCPO's baseline, and the gradients of single responses that it weighs by."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dfpo_jax import ops
from dfpo_jax.advantages import Advantages, Scores, View
from dfpo_jax.advantages.min_variance import MinVariance
from dfpo_jax.algorithms import AlgorithmConfig, compose
from dfpo_jax.critics import Critics
from dfpo_jax.objectives import Objectives
from dfpo_jax.types import Steps

TEMPERATURE = 0.8


@pytest.mark.parametrize("scope", ["group", "batch"])
def test_a_baseline_is_shared_within_its_scope(scope):
    rollout, rng = tiny.ragged_rollout(), np.random.default_rng(1)
    norms, log_weights = rng.uniform(0.1, 2.0, 8), rng.normal(size=8)
    steps = Steps(jnp.zeros(rollout.mask.shape), rollout.mask, rollout.truncated)
    advantage = MinVariance(scope).build()
    assert advantage.needs == ({"scores", "groups"} if scope == "group" else {"scores"})
    view = View(None, None, scores=Scores(norms, log_weights))
    found = advantage.estimate(view, steps, rollout)
    size = 2 if scope == "group" else 8
    for start in range(0, 8, size):
        rows = slice(start, start + size)
        weight = np.exp(2 * log_weights[rows]) * norms[rows]
        baseline = np.sum(weight * rollout.rewards[rows]) / weight.sum()
        expected = (rollout.rewards[rows] - baseline)[:, None] * rollout.mask[rows]
        np.testing.assert_allclose(found[rows], expected, rtol=1e-3, atol=1e-6)


def test_scores_are_those_of_single_responses():
    """Against the gradient of each row's log-probability, taken alone and densely."""
    config = AlgorithmConfig(
        Critics("none"),
        Advantages("min_variance", whiten=False),
        Objectives(name="truncated"),
    )
    algorithm = compose(tiny.Markov(), config, TEMPERATURE)
    rollout, state = tiny.ragged_rollout(), None
    state = tiny.make_state(algorithm)
    batch, _ = algorithm.prepare(state, rollout, jax.random.key(5))
    model, policy = tiny.Markov(), state.params["policy"]

    def log_prob(params, row):
        sequence = np.concatenate([rollout.prompt_tokens, rollout.tokens], axis=1)[row : row + 1]
        hidden, _ = model.apply({"params": params}, sequence, np.ones_like(sequence))
        logits = (hidden @ params["head"])[0, -6:-1] / TEMPERATURE
        chosen = jax.nn.log_softmax(logits)[np.arange(5), rollout.tokens[row]]
        return jnp.sum(jnp.where(rollout.mask[row] > 0, chosen, 0.0))

    log_probs = np.array([log_prob(policy, row) for row in range(8)])
    norms = np.array(
        [
            sum(np.sum(np.square(x)) for x in jax.tree.leaves(jax.grad(log_prob)(policy, row)))
            for row in range(8)
        ]
    )
    log_weights = log_probs - (rollout.log_probs * rollout.mask).sum(axis=1)
    expected = ops.min_variance(rollout.rewards, log_weights, norms, 2)
    np.testing.assert_allclose(
        batch.advantages, np.asarray(expected)[:, None] * rollout.mask, rtol=2e-3, atol=1e-5
    )
    assert norms[3] == 0.0  # an empty response
    np.testing.assert_array_equal(batch.behaviour_log_probs, rollout.log_probs)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="scope is 'prompt'; it must be one of group, batch"):
        dataclasses.replace(MinVariance(), scope="prompt")
