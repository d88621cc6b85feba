"""Supervised fine-tuning: the loss of a loop over the response's tokens, and of no other token."""

import jax
import jax.numpy as jnp
import numpy as np
import tiny
from reference_policy import log_probs
from tiny import Markov, ragged_rollout

from dfpo_jax.algorithms import sft


def run(rollout):
    """The state, the terms and the gradient at its parameters."""
    algorithm = sft(Markov())
    state = tiny.make_state(algorithm)

    @jax.jit
    def evaluate(params, rollout):
        def loss(params):
            batch, context = algorithm.prepare(state, rollout, jax.random.key(0))
            terms = algorithm.loss(params, batch, context, jax.random.key(1))
            return tiny.objective(terms), terms

        return jax.grad(loss, has_aux=True)(params)

    grads, terms = evaluate(state.params, rollout)
    return state, terms, grads


def test_the_loss_is_the_cross_entropy_of_the_response():
    rollout = ragged_rollout()
    state, terms, grads = run(rollout)
    assert set(terms) == {"policy/cross_entropy"}
    term = terms["policy/cross_entropy"]
    expected = -log_probs(state.params["policy"], rollout, 1.0)
    np.testing.assert_allclose(term.total, (expected * rollout.mask).sum(), rtol=1e-5)
    assert float(term.count) == rollout.mask.sum() < rollout.mask.size
    assert float(term.weight) == 1.0
    assert set(grads) == {"policy"}


def test_the_gradient_is_that_of_the_softmax():
    """By the output projection: the state times probability minus one-hot, over the count."""
    rollout = ragged_rollout()
    state, _, grads = run(rollout)
    policy, tokens = state.params["policy"], np.asarray(rollout.tokens)
    before = np.concatenate([rollout.prompt_tokens[:, -1:], tokens[:, :-1]], axis=1)
    expected = np.zeros(policy["head"].shape)
    for index in zip(*np.nonzero(rollout.mask), strict=True):
        hidden = policy["embedding"][before[index]].astype(float)
        weights = np.exp(hidden @ policy["head"])
        p = weights / weights.sum() - np.eye(tiny.VOCAB)[tokens[index]]
        expected += np.outer(hidden, p) / rollout.mask.sum()
    np.testing.assert_allclose(grads["policy"]["head"], expected, atol=1e-6)


def test_what_lies_outside_the_mask_changes_nothing():
    rollout, outside = ragged_rollout(), ragged_rollout().mask == 0
    outside[1, 1] = False  # a gap is read by the model
    changed = rollout.replace(
        prompt_tokens=np.where(rollout.prompt_mask > 0, rollout.prompt_tokens, 7),
        tokens=np.where(outside, 7, rollout.tokens),
        log_probs=jnp.full(rollout.mask.shape, -9.0),
        rewards=np.full(8, 99.0, np.float32),
    )
    assert np.any(changed.tokens != rollout.tokens)
    first, second = run(rollout), run(changed)
    jax.tree.map(np.testing.assert_array_equal, first[1:], second[1:])
