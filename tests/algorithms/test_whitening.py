"""A critic whose features have mean 0 and covariance 1: plain references, and what keeps them."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest
from critic_cases import KEY, TEMPERATURE, Case, critic_case
from flax import linen as nn
from tiny import Markov

from dfpo_jax.algorithms import compose
from dfpo_jax.algorithms.whitening import init_whitening, observe_features, whitened
from dfpo_jax.training.update import Schedule, init_state, update

FLOOR = 0.01
OPTIMIZERS = {name: optax.adamw(1e-2, weight_decay=0.1) for name in ("policy", "critic")}


def drawn(seed, rows=64, length=5, width=3):
    """Features of very different variances, and which count."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(width, width)) * np.array([3.0, 1.0, 0.3])
    features = rng.normal(size=(rows, length, width)) @ mixing.T + rng.normal(size=width)
    mask = rng.uniform(size=(rows, length)) < 0.7
    return features.astype(np.float32), mask.astype(np.float32)


def plain(batches, features):
    """Means over rollouts of mean and covariance, and features whitened by them."""
    means, covariances = [], []
    for x, mask in batches:
        kept = x[mask > 0].astype(np.float64)
        means.append(kept.mean(axis=0))
        covariances.append(np.cov(kept.T, bias=True))
    mean, covariance = np.mean(means, axis=0), np.mean(covariances, axis=0)
    added = FLOOR * np.trace(covariance) / len(mean) * np.eye(len(mean))
    return (features - mean) @ np.linalg.inv(np.linalg.cholesky(covariance + added)).T


def observed(batches, width=3):
    statistics = nn.unbox(init_whitening(width))
    for x, mask in batches:
        statistics = observe_features(statistics, x, mask, FLOOR)
    return statistics


def test_features_are_whitened_by_the_mean_statistics_of_the_rollouts():
    batches = [drawn(0), drawn(1)]
    np.testing.assert_allclose(
        whitened(observed(batches), batches[1][0]), plain(batches, batches[1][0]), atol=2e-3
    )
    x, mask = batches[0]
    kept = np.asarray(whitened(observed(batches[:1]), x))[mask > 0]
    np.testing.assert_allclose(kept.mean(axis=0), 0.0, atol=1e-3)
    # The smallest direction is of the floor's size.
    assert np.linalg.eigvalsh(np.cov(kept.T))[1:] == pytest.approx(1.0, abs=0.15)


def test_statistics_follow_the_newest_rollouts():
    old, (x, mask) = drawn(0), drawn(1)
    statistics = observed([old] * 30)
    moved = observe_features(statistics, x, mask, FLOOR)
    new = observed([(x, mask)])
    wanted = 0.9 * np.asarray(statistics["mean"]) + 0.1 * np.asarray(new["mean"])
    np.testing.assert_allclose(moved["mean"], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["nothing counts", "nothing varies", "not a number outside"])
def test_degenerate_rollouts_leave_finite_features(case):
    x, mask = drawn(0)
    statistics = observed([(x, mask)])
    if case == "nothing counts":
        found = observe_features(statistics, x, 0 * mask, FLOOR)
        jax.tree.map(np.testing.assert_array_equal, found, statistics)
    elif case == "nothing varies":
        found = observed([(np.zeros_like(x), mask)])
        np.testing.assert_array_equal(whitened(found, x), x)
    else:
        found = observed([(np.where(mask[..., None] > 0, x, np.nan), mask)])
        jax.tree.map(np.testing.assert_array_equal, found, statistics)


@functools.cache
def case():
    config = critic_case("scalar", "detached").config
    critic = dataclasses.replace(config.critic, whiten=FLOOR, pooled=True)
    return Case(dataclasses.replace(config, critic=critic))


@functools.cache
def first():
    """A state that has seen no rollout, and what it prepares."""
    this = case()
    state = init_state(this.algorithm, OPTIMIZERS, this.state.params["policy"], KEY)
    state = nn.unbox(state.replace(step=this.state.step))
    return state, *this.prepare(state, this.rollout, KEY)


def test_an_iteration_keeps_the_statistics_it_has_used_and_never_trains_them():
    this, (state, batch, context) = case(), first()
    assert float(state.params["critic"]["whitening"]["seen"]) == 0.0
    inputs = dict(algorithm=this.algorithm, optimizers=OPTIMIZERS, schedule=Schedule(1, 2, 2))
    after, metrics, _ = jax.jit(functools.partial(update, **inputs))(state, batch, context)
    kept = after.params["critic"]["whitening"]
    jax.tree.map(np.testing.assert_array_equal, kept, context.whitening)
    assert float(kept["seen"]) == 1.0 and np.any(kept["mean"] != 0.0)
    assert set(after.opt_state["critic"][0].mu) == {"head"}
    heads = (after.params["critic"]["head"], state.params["critic"]["head"])
    moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), *heads)
    assert max(jax.tree.leaves(moved)) > 0.0 and np.isfinite(metrics["critic/loss"])


def test_the_features_of_a_critic_that_rests_do_not_move():
    this, (state, _, context) = case(), first()
    critic = {**state.params["critic"], "whitening": context.whitening}
    state = state.replace(params={**state.params, "critic": critic})
    resting = compose(Markov(), this.config, TEMPERATURE, critic_rests=True)
    _, found = jax.jit(resting.prepare)(state, this.rollout, KEY)
    same = jax.tree.map(np.array_equal, found.whitening, context.whitening)
    assert all(jax.tree.leaves(same))


def test_prediction_reads_features_as_the_losses_do():
    this, (start, batch, context) = case(), first()
    rollout, params = this.rollout, {**start.params, "critic": this.moved["critic"]}
    raw = dataclasses.replace(this.config.critic, whiten=0.0)
    plainly = Case(dataclasses.replace(this.config, critic=raw))
    trained = {**params["critic"], "whitening": context.whitening}
    state = start.replace(params={**params, "critic": trained})
    # A linear critic of whitened features is one of raw features with other weights.
    head, statistics = params["critic"]["head"]["output"], context.whitening
    kernel = np.asarray(statistics["inverse"]).T @ np.asarray(head["kernel"])
    bias = np.asarray(head["bias"]) - np.asarray(statistics["mean"]) @ kernel
    same = {**params, "critic": {"head": {"output": {"kernel": kernel, "bias": bias}}}}
    found = jax.jit(this.algorithm.predict)(state, rollout)
    wanted = jax.jit(plainly.algorithm.predict)(start.replace(params=same), rollout)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)
    unwhitened = context.replace(critic=same["critic"]["head"], whitening=None)
    ours, _ = this.run({**params, "critic": trained}, batch, context)
    theirs, _ = plainly.run(same, batch, unwhitened)
    np.testing.assert_allclose(ours["critic/loss"].total, theirs["critic/loss"].total, rtol=1e-3)
