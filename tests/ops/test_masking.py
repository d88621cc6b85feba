import functools

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


def data(seed, batch=6, time=7):
    rng = np.random.default_rng(seed)
    mask = reference.random_mask(rng, batch, time)
    return rng.normal(2.0, 3.0, (batch, time)).astype(np.float32), mask


@pytest.mark.parametrize("name", ["masked_mean", "masked_var", "masked_whiten"])
def test_statistics_match_loop_and_ignore_what_is_masked(variant, name):
    x, mask = data(0)
    fun, expected = variant(getattr(ops, name)), getattr(reference, name)(x, mask)
    for junk in (0.0, 1e30, np.inf, np.nan):
        result = fun(reference.with_junk(x, mask, junk), mask)
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4)])
def test_statistics_take_any_shape_and_bool_masks(shape):
    rng = np.random.default_rng(1)
    x, mask = rng.normal(size=shape).astype(np.float32), rng.random(shape) < 0.7
    var = jax.jit(ops.masked_var)(x, mask)
    np.testing.assert_allclose(var, reference.masked_var(x, mask), rtol=1e-5, atol=1e-7)
    total, count = jax.jit(ops.masked_sum_and_count)(x, mask)
    np.testing.assert_allclose(total, sum(reference.valid_elements(x, mask)), rtol=1e-5)
    assert float(count) == mask.sum() and count.dtype == jnp.float32


def test_known_numbers():
    x, mask = np.arange(1.0, 6.0), np.array([1.0, 1.0, 0.0, 0.0, 1.0])
    np.testing.assert_allclose(jax.jit(ops.masked_mean)(x, mask), 8 / 3, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(ops.masked_var)(x, mask), 13 / 3, rtol=1e-6)
    whitened = jax.jit(ops.masked_whiten)(np.arange(1.0, 5.0), np.array([0.0, 1.0, 1.0, 0.0]))
    np.testing.assert_allclose(whitened, [0, -(0.5**0.5), 0.5**0.5, 0], rtol=1e-6)


@pytest.mark.parametrize("valid", [0, 1])
def test_too_few_elements_give_zero_and_finite_gradients(valid):
    x = np.array([3.0, np.nan, np.nan, np.nan])
    mask = np.array([valid, 0, 0, 0])
    assert float(jax.jit(ops.masked_mean)(x, mask)) == 3.0 * valid
    for fun in (ops.masked_var, lambda x, m: ops.masked_whiten(x, m).sum()):
        value, grad = jax.jit(jax.value_and_grad(fun))(x, mask)
        assert float(value) == 0
        np.testing.assert_array_equal(grad, np.zeros(4))


def test_gradients_are_zero_where_masked_and_right_elsewhere():
    x, mask = data(2)
    x = reference.with_junk(x, mask)
    grad = jax.jit(jax.grad(ops.masked_mean))(x, mask)
    np.testing.assert_allclose(grad, mask / mask.sum(), rtol=1e-6)
    grad = np.asarray(jax.jit(jax.grad(lambda x: jnp.sum(ops.masked_whiten(x, mask) ** 3)))(x))
    assert np.isfinite(grad).all() and (grad[mask == 0] == 0).all()
    assert np.abs(grad[mask > 0]).max() > 1e-3


def test_whitening_a_constant_gives_exactly_zero(variant):
    _, mask = data(3)
    for constant in (0.1, 0.7, -1 / 3, 1234.567):
        x = np.full(mask.shape, constant, np.float32)
        result = variant(ops.masked_whiten)(x, mask)
        np.testing.assert_array_equal(result, np.zeros(mask.shape))


def test_statistics_of_bfloat16_and_integers_are_taken_in_float32():
    ones = np.ones(1000, jnp.bfloat16)
    total, count = jax.jit(ops.masked_sum_and_count)(ones, ones)
    assert float(total) == float(count) == 1000  # bfloat16 would stop at 256
    mean = jax.jit(ops.masked_mean)(np.array([1, 2]), np.array([1, 1]))
    assert float(mean) == 1.5 and mean.dtype == jnp.float32


def test_float64_is_kept():
    with jax.enable_x64(True):
        assert jax.eval_shape(ops.masked_mean, np.ones(3), np.ones(3)).dtype == jnp.float64


@pytest.mark.parametrize("mode", ops.AGGREGATIONS)
def test_aggregation_matches_loop(variant, mode):
    x, mask = data(4)
    weights, count = variant(ops.aggregate_weights, static_argnames="mode")(mask, mode=mode)
    expected = reference.aggregate(x, mask, mode)
    weights = np.asarray(weights)
    np.testing.assert_allclose(np.sum(x * weights) / count, expected, rtol=1e-5)
    assert (weights[mask == 0] == 0).all()


def test_aggregation_known_numbers_and_empty_mask():
    x = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
    mask = np.array([[1, 1, 0], [1, 1, 1]])
    for mode, expected in (("token_mean", 0.36), ("sequence_mean", 0.325)):
        fun = jax.jit(functools.partial(ops.aggregate_weights, mode=mode))
        weights, count = fun(mask)
        np.testing.assert_allclose(np.sum(x * weights) / count, expected, rtol=1e-6)
        weights, count = fun(np.zeros_like(mask))
        assert float(count) == 0 and not np.any(weights)


@pytest.mark.parametrize("mode", ops.AGGREGATIONS)
def test_micro_batches_add_up_to_the_batch(mode):
    mask = np.arange(12) < np.array([12, 7, 3, 11, 5, 9, 2, 6])[:, None]
    x = np.random.default_rng(0).normal(size=mask.shape).astype(np.float32)

    @functools.partial(jax.jit, static_argnums=1)
    @jax.value_and_grad
    def loss(scale, micro_batches):
        total, count = 0.0, 0.0
        for part in np.split(np.arange(8), micro_batches):
            weights, n = ops.aggregate_weights(mask[part], mode)
            total, count = total + jnp.sum(jnp.square(scale * x[part]) * weights), count + n
        return total / count

    np.testing.assert_allclose(loss(1.3, 4), loss(1.3, 1), rtol=1e-5)


def test_last_valid_and_place_at_last_match_loop(variant):
    _, mask = data(6)
    one_hot = reference.last_valid(mask)
    np.testing.assert_array_equal(variant(ops.last_valid)(mask), one_hot)
    values = np.arange(1.0, 7.0, dtype=np.float32)
    values[0] = np.nan  # row 0 is empty
    placed = variant(ops.place_at_last)(values, mask)
    np.testing.assert_array_equal(placed, one_hot * np.nan_to_num(values)[:, None])


def test_place_at_last_keeps_fractions():
    placed = jax.jit(ops.place_at_last)(np.array([0.75]), np.array([[1, 1, 0]]))
    np.testing.assert_array_equal(placed, [[0, 0.75, 0]])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ops.aggregate_weights(np.ones((1, 2)), "mean"), ["mode", "mean", "token_mean"]),
    ],
)
def test_bad_options_are_named(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    "call",
    [
        lambda: ops.masked_mean(np.ones((2, 3)), np.ones((3,))),
        lambda: ops.masked_var(np.ones((2, 3)), np.ones((2, 1))),
        lambda: ops.masked_whiten(np.ones((2, 3)), np.ones((3, 2))),
        lambda: ops.aggregate_weights(np.ones(3), "token_mean"),
        lambda: ops.place_at_last(np.ones(3), np.ones((2, 3))),
    ],
)
def test_wrong_shapes_and_types_are_refused(call):
    with pytest.raises(AssertionError):
        call()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_lowest_share_marks_the_smallest_valid_elements(variant, share):
    rng = np.random.default_rng(3)
    x, mask = rng.normal(size=(4, 5)), np.ones((4, 5))
    mask[0], mask[1, ::2] = 0, 0
    x[mask == 0] = -9.0  # smaller than any valid one
    found = variant(ops.lowest_share, static_argnames="share")(
        x.astype(np.float32), mask, share=share
    )
    count = int(share * mask.sum())
    bound = np.sort(x[mask > 0])[: max(count, 1)].max()
    np.testing.assert_array_equal(found, (x <= bound) * (mask > 0) * (count > 0))


def test_lowest_share_of_nothing_and_of_equal_values():
    zeros = np.zeros((2, 3), np.float32)
    np.testing.assert_array_equal(ops.lowest_share(zeros, zeros, 0.5), zeros)
    np.testing.assert_array_equal(ops.lowest_share(zeros, zeros + 1, 0.5), zeros + 1)
    with pytest.raises(ValueError, match="share is 1.5"):
        ops.lowest_share(zeros, zeros, 1.5)


def test_explained_variance_against_numpy(variant):
    rng = np.random.default_rng(4)
    observed, mask = rng.normal(size=(6, 4)).astype(np.float32), np.ones((6, 4))
    mask[2:, 3] = 0
    predicted = (0.5 * observed + rng.normal(size=(6, 4))).astype(np.float32)
    inside = mask > 0
    expected = 1 - np.var((observed - predicted)[inside]) / np.var(observed[inside])
    found = variant(ops.explained_variance)(predicted, observed, mask)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    constant = ops.explained_variance(predicted, np.ones_like(predicted), mask)
    assert constant == 0.0  # returns without variance
    rounding = (predicted * np.float32(1e-7)).astype(np.float32)  # as value + advantage leaves it
    assert ops.explained_variance(predicted, rounding, mask) == 0.0
    small = ops.explained_variance(1e-5 * predicted, 1e-5 * observed, mask)
    np.testing.assert_allclose(small, expected, rtol=1e-5)
    np.testing.assert_allclose(ops.explained_variance(observed + 3, observed, mask), 1, atol=1e-6)
