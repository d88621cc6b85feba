"""Accuracies, pass@k and the critic's figures, against enumeration and loops."""

import itertools
import math

import jax
import numpy as np
import optax
import pytest
import scipy.stats
from tiny import (  # noqa: F401
    DECODER,
    FLOW,
    follow,
    ragged_rollout,
    table_model,
)

from dfpo_jax.algorithms import AlgorithmConfig, Returns, compose
from dfpo_jax.critics import Critics
from dfpo_jax.models import Transformer
from dfpo_jax.rollout.sampler import Sampler
from dfpo_jax.rollout.sampling import SamplingConfig
from dfpo_jax.sharding import create_mesh
from dfpo_jax.tasks.base import Item, Verdict
from dfpo_jax.training.evaluate import critic_metrics, greedy_accuracy, observed_returns, pass_at_k
from dfpo_jax.training.learner import Learner
from dfpo_jax.training.metrics import explained_variance
from dfpo_jax.training.update import Schedule
from dfpo_jax.types import Rollout


class Equal:
    """1 for the item's own answer, else 0; or rewards given beforehand, in their order."""

    name, reward_range, solved_at = "equal", (0.0, 1.0), 1.0

    def __init__(self, rewards=None):
        self.rewards = rewards

    def judge(self, items, responses):
        if self.rewards is not None:
            return [Verdict(float(x)) for x in self.rewards]
        return [Verdict(float(i.answer == r)) for i, r in zip(items, responses, strict=True)]


@pytest.fixture(scope="module")
def policy():
    """1 is followed by 2, 2 by 3, 3 by 4, 4 by 1: a response of three characters."""
    tokenizer, params = follow("12341")
    config = SamplingConfig(max_new_tokens=3)
    return Sampler(table_model(20), tokenizer, 1, config, create_mesh()), params


def test_greedy_accuracy_is_the_share_of_solved_items(policy):
    items = [Item("1", "234"), Item("2", "341"), Item("3", "412"), Item("4", "124")]
    key = jax.random.key(0)
    accuracy, texts, correct = greedy_accuracy(*policy, Equal(), items, key)
    assert texts == ["234", "341", "412", "123"]
    assert (accuracy, correct) == (0.75, [True, True, True, False])
    partial = greedy_accuracy(*policy, Equal([1.0, 0.9, 0.0, 1.0]), items, key)
    assert (partial[0], partial[2]) == (0.5, [True, False, False, True])


def test_pass_at_k_is_the_share_of_subsets_with_a_solution(policy):
    rewards = np.array([[1, 0, 0, 1, 0, 0], [0] * 6, [1] * 6, [0, 0, 0, 0, 0, 1]])
    items = [Item(str(i + 1), "") for i in range(4)]
    ks = (1, 2, 3, 6)
    found = pass_at_k(*policy, Equal(rewards.ravel()), items, jax.random.key(0), samples=6, ks=ks)
    for k in ks:
        subsets = [
            any(row[list(s)]) for row in rewards for s in itertools.combinations(range(6), k)
        ]
        assert found[k] == pytest.approx(np.mean(subsets))
    for k in (0, 7):
        with pytest.raises(ValueError, match=f"k is {k}; it must lie between 1 and .* 6"):
            pass_at_k(*policy, Equal(), items, jax.random.key(0), samples=6, ks=[k])


def test_a_critic_is_read_at_any_number_of_rows():
    model, optimizer = Transformer(DECODER), optax.sgd(0.1)
    algorithm = compose(model, AlgorithmConfig(Critics("flow", flow=FLOW)), 1.0)
    optimizers = {"policy": optimizer, "critic": optimizer}
    learner = Learner(model, algorithm, optimizers, Schedule(), create_mesh(2, 4))
    state, rollout = learner.start(jax.random.key(0)), ragged_rollout(batch=8)
    part = jax.tree.map(lambda x: x[:5], rollout)
    found, whole = learner.predict(state, part), learner.predict(state, rollout)
    assert found.shape[0] == 5
    np.testing.assert_allclose(found, whole[:5], rtol=1e-5, atol=1e-6)
    found, whole = learner.trajectories(state, part), learner.trajectories(state, rollout)
    assert found.shape[1] == 5
    np.testing.assert_allclose(found, whole[:, :5], rtol=1e-5, atol=1e-6)


def make_rollout(mask, rewards, truncated=None):
    rows = len(mask)
    return Rollout(
        prompt_tokens=None,
        prompt_mask=None,
        tokens=None,
        mask=np.asarray(mask, np.float32),
        log_probs=None,
        truncated=np.zeros(rows, bool) if truncated is None else np.asarray(truncated),
        rewards=np.asarray(rewards, np.float32),
        clean_rewards=None,
        groups=None,
    )


MASK = [[1, 1, 1, 1], [1, 0, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]]


@pytest.mark.parametrize("overlong", ["terminal", "mask", "bootstrap"])
def test_returns_are_discounted_over_valid_tokens(overlong):
    rollout = make_rollout(MASK, [2.0, 1.0, -3.0, 0.5], [False, False, False, True])
    config = Returns(discount=0.9, overlong=overlong)
    returns, valid = observed_returns(rollout, config)
    for b, row in enumerate(MASK):
        counts = overlong == "terminal" or not rollout.truncated[b]
        for i, on in enumerate(row):
            assert valid[b, i] == (bool(on) and counts)
            if on:
                expected = float(rollout.rewards[b]) * 0.9 ** sum(row[i + 1 :])
                assert returns[b, i] == pytest.approx(expected)


def test_a_critic_that_knows_the_discounted_return_is_perfect():
    rng = np.random.default_rng(0)
    rollout = make_rollout(np.ones((32, 20)), rng.integers(0, 2, 32))
    config = Returns(discount=0.9)
    quantiles = np.repeat(observed_returns(rollout, config)[0][..., None], 4, axis=-1)
    found = critic_metrics(quantiles, rollout, 1, config)
    exact = {"explained_variance": 1.0, "crps": 0.0, "wasserstein1": 0.0}
    assert found == pytest.approx(exact | {"spread": 1.0, "correlation": 1.0})


def test_critic_metrics_equal_a_loop():
    rng = np.random.default_rng(1)
    rollout = make_rollout(MASK, rng.normal(size=4), [False, True, False, False])
    config = Returns(discount=0.8, overlong="mask")
    quantiles = np.sort(rng.normal(size=(4, 4, 3)), axis=-1).astype(np.float32)
    returns, valid = observed_returns(rollout, config)
    means, seen, crps = [], [], []
    for b, i in zip(*np.nonzero(valid), strict=True):
        q, x = quantiles[b, i].astype(float), float(returns[b, i])
        means.append(q.mean())
        seen.append(x)
        pairs = np.abs(q[:, None] - q[None, :]).mean()
        crps.append(np.abs(q - x).mean() - pairs / 2)
    distances = [  # the second row has no return
        scipy.stats.wasserstein_distance(quantiles[0, 0], returns[:1, 0]),
        scipy.stats.wasserstein_distance(quantiles[2, 0], returns[2:, 0]),
    ]
    found = critic_metrics(quantiles, rollout, 2, config)
    expected = float(explained_variance(np.array(means), np.array(seen)))
    assert found["explained_variance"] == pytest.approx(expected, rel=1e-5)
    assert found["crps"] == pytest.approx(np.mean(crps), rel=1e-5)
    assert found["wasserstein1"] == pytest.approx(np.mean(distances), rel=1e-5)
    predicted = quantiles[[0, 2], 0].mean(axis=1)
    observed = np.array([returns[0, 0], returns[2:, 0].mean()])
    assert found["spread"] == pytest.approx(predicted.std() / observed.std(), rel=1e-5)
    correlation = np.corrcoef(predicted, observed)[0, 1]
    assert found["correlation"] == pytest.approx(correlation, rel=1e-5)
    same = critic_metrics(np.ones_like(quantiles), rollout, 2, config)
    assert (same["spread"], same["correlation"]) == (0.0, 0.0)
    assert "spread" not in critic_metrics(quantiles, rollout, 4, config)  # of one prompt
    none = critic_metrics(quantiles, rollout.replace(truncated=np.ones(4, bool)), 2, config)
    assert all(math.isnan(value) for value in none.values())
