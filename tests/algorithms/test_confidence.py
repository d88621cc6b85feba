"""What the critic reads of the policy's probabilities: plain references, and what it changes."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import reference_policy
from critic_cases import KEY, TEMPERATURE, Case, critic_case
from reference_policy import state_tokens
from tiny import VOCAB, WIDTH, ragged_rollout

from dfpo_jax.algorithms.confidence import FEATURES, confidence_features


def plain_features(log_probs, entropy, mask, tokens):
    """`confidence_features`, token by token."""
    rows, length = mask.shape
    found = np.zeros((rows, length + 1, FEATURES))
    for row in range(rows):
        for i in range(length + 1):
            p = [np.exp(log_probs[row, j]) for j in range(i) if mask[row, j]]
            last = np.exp(log_probs[row, i - 1]) if i > 0 and mask[row, i - 1] else 1.0
            mean = np.prod(p) ** (1 / len(p)) if p else 1.0
            share = entropy[row, i] / np.log(tokens) if i < length else 0.0
            found[row, i, :4] = 1.0 - np.array([last, min(p, default=1.0), np.prod(p), mean])
            found[row, i, 4:] = share, i / length
    return found


def test_features_against_a_plain_reference(variant):
    rng = np.random.default_rng(0)
    mask = np.array([[1, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]], np.float32)
    log_probs = -rng.uniform(0.1, 4.0, mask.shape).astype(np.float32)
    entropy = rng.uniform(0, np.log(7), mask.shape).astype(np.float32)
    found = variant(confidence_features, static_argnums=3)(log_probs, entropy, mask, 7)
    wanted = plain_features(log_probs, entropy, mask, 7)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert found.min() >= 0.0 and found.max() <= 1.0


@functools.cache
def case(trunk):
    config = critic_case("scalar", trunk).config
    critic = dataclasses.replace(config.critic, confidence=True)
    return Case(dataclasses.replace(config, critic=critic))


@pytest.mark.parametrize("trunk", ["own", "detached"])
def test_the_batch_holds_the_old_policys_features_and_prediction_reads_them(trunk):
    this, rollout = case(trunk), ragged_rollout()
    policy = jax.tree.map(np.asarray, this.state.params["policy"])
    log_probs = reference_policy.log_probs(policy, rollout, TEMPERATURE)
    logits = policy["embedding"][state_tokens(rollout)[:, :-1]] @ policy["head"] / TEMPERATURE
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    entropy = -(p * np.log(p)).sum(-1)
    wanted = plain_features(log_probs, entropy, rollout.mask, VOCAB)
    np.testing.assert_allclose(this.batch.confidence, wanted, rtol=1e-4, atol=1e-5)
    states = np.asarray(this.states(this.state.params))
    states = states + wanted @ np.asarray(this.state.params["critic"]["confidence"]["kernel"])
    head = this.state.params["critic"]["head"]
    law = this.critic.law(this.critic.read(head, states.astype(np.float32)))
    units = this.state.controls
    law = law * units["value_scale"] + units["value_shift"]
    found = jax.jit(this.algorithm.predict)(this.state, rollout)
    np.testing.assert_allclose(found, law[:, :-1], rtol=1e-4, atol=1e-5)


def test_the_kernel_learns_and_the_policy_gets_no_gradient_through_features():
    this = case("detached")
    _, grads = this.run(this.moved)
    grads = grads["params"]
    assert np.abs(grads["critic"]["confidence"]["kernel"]).max() > 0.0
    plain = critic_case("scalar", "detached")
    params = {**this.moved, "critic": {"head": this.moved["critic"]["head"]}}
    _, others = plain.run(params, this.batch.replace(confidence=None))
    leaves = map(jax.tree.leaves, (grads["policy"], others["params"]["policy"]))
    for mine, other in zip(*leaves, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_predictions_depend_on_what_was_written():
    this = case("own")
    changed = {**this.state.params["critic"], "confidence": {"kernel": np.zeros((FEATURES, WIDTH))}}
    state = this.state.replace(params={**this.state.params, "critic": changed})
    batch, _ = this.prepare(state, this.rollout, KEY)
    assert not np.allclose(batch.critic.returns, this.batch.critic.returns)
