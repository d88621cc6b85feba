"""GSPO's surrogate against a loop over responses, and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from policy_batch import CONTEXT, random_batch

from dfpo_jax import ops
from dfpo_jax.objectives import Sequence


def of_one_advantage(batch):
    """The batch with one advantage for all tokens of a response, as GSPO has."""
    return batch.replace(advantages=np.broadcast_to(batch.advantages[:, :1], batch.mask.shape))


def losses(sequence, live, batch):
    return sequence.build().terms(live, batch, CONTEXT, None)


def log_ratios(live, batch):
    """[B] mean log-ratio of a response's tokens."""
    return [
        reference.masked_mean(*row)
        for row in zip(live.log_probs - batch.old_log_probs, batch.mask, strict=True)
    ]


def test_losses_equal_loops():
    batch, live = random_batch()
    batch = batch.replace(importance=np.ones_like(batch.importance))
    found = losses(Sequence(0.1, 0.15), live, batch)
    ratios = np.exp(log_ratios(live, batch))
    for b, i in np.argwhere(batch.mask > 0):
        ratio, advantage = ratios[b], batch.advantages[b, i]
        clipped = min(max(ratio, 0.9), 1.15)
        expected = -min(ratio * advantage, clipped * advantage)
        np.testing.assert_allclose(found["loss"].per_token[b, i], expected, rtol=1e-4)
        out = (advantage > 0 and ratio > 1.15) or (advantage < 0 and ratio < 0.9)
        assert found["clip_fraction"].per_token[b, i] == out
    assert found["loss"].aggregation == found["clip_fraction"].aggregation == "sequence_mean"
    assert (found["loss"].weight, found["clip_fraction"].weight) == (1.0, 0.0)
    assert 0 < np.mean(found["clip_fraction"].per_token) < 1


def test_with_one_advantage_per_response_the_gradient_is_that_of_gspo():
    batch, live = random_batch()
    batch = of_one_advantage(batch).replace(importance=np.ones_like(batch.importance))
    weights, count = ops.aggregate_weights(batch.mask, "sequence_mean")

    def ours(log_probs):
        found = losses(Sequence(0.1, 0.15), live._replace(log_probs=log_probs), batch)
        return jnp.sum(found["loss"].per_token * weights) / count

    def theirs(log_probs):
        """Equation 5 of the paper."""
        ratio = ops.sequence_ratio(log_probs, batch.old_log_probs, batch.mask)
        advantage = batch.advantages[:, 0]
        surrogate = jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.9, 1.15) * advantage)
        return -jnp.sum(surrogate * (batch.mask.sum(1) > 0)) / count

    found, expected = (jax.value_and_grad(f)(live.log_probs) for f in (ours, theirs))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-4, atol=1e-7)
    assert np.any(found[1])


def test_another_advantage_keeps_its_credit_to_tokens():
    batch, live = random_batch()
    live = live._replace(log_probs=batch.old_log_probs)
    batch = batch.replace(importance=np.ones_like(batch.importance))

    def total(log_probs):
        found = losses(Sequence(), live._replace(log_probs=log_probs), batch)["loss"]
        return jnp.sum(found.per_token * batch.mask)

    gradient = jax.grad(total)(live.log_probs)
    np.testing.assert_allclose(gradient, -batch.advantages * batch.mask, rtol=1e-5)


def test_the_defaults_are_published():
    assert (Sequence().low, Sequence().high) == (3e-4, 4e-4)


@pytest.mark.parametrize(
    ("options", "message"), [({"low": 1.5}, "low is 1.5"), ({"high": -0.1}, "high is -0.1")]
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Sequence(**options)
