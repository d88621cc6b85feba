"""Sums, means and weights of whole responses, against loops in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from dfpo_jax import ops


@pytest.fixture(autouse=True)
def strict_dtypes():
    with jax.numpy_dtype_promotion("strict"):
        yield


def data(seed=0, shape=(6, 8), junk=np.nan):
    rng = np.random.default_rng(seed)
    mask = reference.random_mask(rng, *shape)
    log_probs, old = rng.normal(-2.0, 0.5, (2, *shape))
    return reference.with_junk(log_probs, mask, junk), reference.with_junk(old, mask, junk), mask


def rows(x, mask):
    return [reference.valid_elements(*row) for row in zip(x, mask, strict=True)]


def test_rows_are_summed_and_averaged_over_their_tokens(variant):
    x, _, mask = data()
    expected = rows(x, mask)
    total, mean = variant(ops.row_sum)(x, mask), variant(ops.row_mean)(x, mask)
    np.testing.assert_allclose(total, [sum(row) for row in expected], rtol=1e-5)
    np.testing.assert_allclose(mean, [sum(row) / max(len(row), 1) for row in expected], rtol=1e-5)
    assert total[0] == mean[0] == 0  # an empty row


@pytest.mark.parametrize(("function", "averaged"), [("ratio", True), ("weight", False)])
def test_ratios_and_weights_are_means_and_products(function, averaged, variant):
    log_probs, old, mask = data()
    found = variant(getattr(ops, f"sequence_{function}"))(log_probs, old, mask)
    logs = rows(log_probs - old, mask)
    logs = [sum(row) / (max(len(row), 1) if averaged else 1) for row in logs]
    np.testing.assert_allclose(found, np.exp(logs), rtol=1e-4)


def test_the_ratio_of_equal_tokens_is_that_of_a_token_whatever_the_length():
    old = np.full((2, 5), -1.0, np.float32)
    mask = np.array([[1, 1, 1, 1, 1], [0, 1, 0, 0, 0]], np.float32)
    found = ops.sequence_ratio(old + np.float32(math.log(1.7)), old, mask)
    np.testing.assert_allclose(found, [1.7, 1.7], rtol=1e-6)
    np.testing.assert_array_equal(ops.sequence_ratio(old, old, mask), [1.0, 1.0])


def test_the_ratio_has_the_gradient_of_a_mean_and_the_weight_has_none():
    log_probs, old, mask = data(1)
    kept = mask > 0

    def total(function):
        return lambda x, y: jnp.sum(function(x, y, mask))

    gradients = jax.grad(total(ops.sequence_ratio), (0, 1))(log_probs, old)
    ratios = np.asarray(ops.sequence_ratio(log_probs, old, mask))[:, None]
    expected = np.where(kept, ratios / np.maximum(kept.sum(1, keepdims=True), 1), 0)
    np.testing.assert_allclose(gradients[0], expected, rtol=1e-5)
    np.testing.assert_array_equal(gradients[1], np.zeros_like(mask))
    for gradient in jax.grad(total(ops.sequence_weight), (0, 1))(log_probs, old):
        np.testing.assert_array_equal(gradient, np.zeros_like(mask))


@pytest.mark.parametrize("sign", [-1, 1])
def test_extreme_responses_stay_finite(sign):
    log_probs, mask = sign * np.full((2, 500), 30.0, np.float32), np.ones((2, 500), np.float32)
    ratio = ops.sequence_ratio(log_probs, 0 * log_probs, mask)
    weight = ops.sequence_weight(log_probs, 0 * log_probs, mask)
    np.testing.assert_allclose(ratio, np.full(2, math.exp(20.0 * sign)), rtol=1e-5)
    np.testing.assert_allclose(weight, np.full(2, math.exp(30.0 * sign)), rtol=1e-5)
    assert np.isfinite(1e6 * np.square(weight)).all() and (np.square(weight) > 0).all()


def test_the_effective_share_is_the_definition(variant):
    log_weights = np.random.default_rng(2).normal(0, 1.5, 9).astype(np.float32)
    weights = np.exp(log_weights.astype(float))
    expected = weights.sum() ** 2 / (9 * np.square(weights).sum())
    found = variant(ops.effective_sample_size)(log_weights)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # Neither a common factor nor its size matters.
    for shift in (-1e4, 1e4):
        np.testing.assert_allclose(
            ops.effective_sample_size(log_weights + np.float32(shift)), expected, rtol=1e-2
        )


def test_the_effective_share_is_1_on_policy_and_1_of_the_batch_when_one_weight_owns_it():
    assert float(ops.effective_sample_size(np.zeros(7, np.float32))) == 1.0
    assert float(ops.effective_sample_size(np.full(7, 1e30, np.float32))) == 1.0
    for other in (-1e30, -np.inf):
        owned = np.array([5.0] + [other] * 7, np.float32)
        assert float(ops.effective_sample_size(owned)) == 1 / 8
    assert float(ops.effective_sample_size(np.array([3.0], np.float32))) == 1.0
    gradient = jax.grad(ops.effective_sample_size)(np.array([0.1, 0.7], np.float32))
    np.testing.assert_array_equal(gradient, [0.0, 0.0])


X = np.zeros((2, 3), np.float32)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="log_weights"):
        ops.effective_sample_size(np.zeros(0, np.float32))
    for call in (
        lambda: ops.effective_sample_size(X),
        lambda: ops.row_sum(X, X[:1]),
        lambda: ops.row_mean(X[0], X[0]),
        lambda: ops.sequence_ratio(X, X, X[:, :2]),
        lambda: ops.sequence_weight(X, X[:1], X),
    ):
        with pytest.raises(AssertionError):
            call()
