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


def data(seed, batch=7, time=9):
    rng = np.random.default_rng(seed)
    rewards, values = rng.normal(size=(2, batch, time)).astype(np.float32)
    mask = reference.random_mask(rng, batch, time)
    lambdas, final_values = rng.random((2, batch)).astype(np.float32)
    return rewards, values, mask, lambdas, final_values


@pytest.mark.parametrize(
    ("discount", "per_row", "bootstrap"),
    [(1.0, False, False), (0.9, True, False), (0.9, False, True), (0.0, True, True)],
)
def test_gae_matches_loop_on_the_cut_out_tokens(variant, discount, per_row, bootstrap):
    rewards, values, mask, lambdas, final_values = data(0)
    lambda_ = lambdas if per_row else 0.8
    final_values = final_values if bootstrap else None
    fun = variant(ops.gae, static_argnames="discount")
    result = fun(
        reference.with_junk(rewards, mask),
        reference.with_junk(values, mask, np.inf),
        mask,
        discount=discount,
        lambda_=lambda_,
        final_values=final_values,
    )
    result = [np.asarray(x) for x in result]
    expected = reference.gae(rewards, values, mask, discount, lambda_, final_values)
    np.testing.assert_allclose(result[0], expected[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(result[1], expected[1], rtol=1e-5, atol=1e-5)
    assert (result[0][mask == 0] == 0).all() and (result[1][mask == 0] == 0).all()


def test_gae_matches_rlax():
    rlax = pytest.importorskip("rlax")
    rewards, values, _, lambdas, final_values = data(1)
    ones = np.ones_like(rewards)
    result, _ = jax.jit(ops.gae)(
        rewards, values, ones, discount=0.97, lambda_=lambdas, final_values=final_values
    )
    expected = jax.jit(jax.vmap(rlax.truncated_generalized_advantage_estimation))(
        rewards, 0.97 * ones, lambdas[:, None] * ones, np.c_[values, final_values]
    )
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


def test_gae_known_numbers():
    fun = jax.jit(ops.gae)
    rewards, values = np.array([[0.0, 0, 5]]), np.array([[1.0, 2, 3]])
    advantages, returns = fun(rewards, values, np.ones((1, 3)), lambda_=0.0)
    np.testing.assert_allclose(advantages, [[1, 1, 2]])
    np.testing.assert_allclose(returns, [[2, 3, 5]])
    rewards, values = np.array([[0.0, 0, 0, 1]]), np.full((1, 4), 0.5)
    advantages, _ = fun(rewards, values, np.ones((1, 4)), lambda_=1.0)
    np.testing.assert_allclose(advantages, values)


def test_gae_with_lambda_one_returns_the_reward_to_go_whatever_the_values():
    rewards, values, mask, _, _ = data(2)
    _, returns = jax.jit(ops.gae)(rewards, values, mask, lambda_=1.0)
    kept = rewards * mask
    to_go = np.cumsum(kept[:, ::-1], axis=1)[:, ::-1] * mask
    np.testing.assert_allclose(returns, to_go, rtol=1e-5, atol=1e-5)


def test_gae_of_fractional_reward_beside_integer_values_keeps_the_fraction():
    fun, zeros = jax.jit(ops.gae), np.zeros((1, 2), int)
    advantages, _ = fun(np.array([[0.0, 0.75]]), zeros, np.ones((1, 2)), lambda_=1.0)
    np.testing.assert_array_equal(advantages, [[0.75, 0.75]])
    advantages, _ = fun(zeros, np.array([[0.25, 0.25]]), np.ones((1, 2), bool))
    np.testing.assert_allclose(advantages, [[-0.2375, -0.25]])


def test_gae_is_linear_so_the_mean_over_quantiles_commutes():
    rewards, _, mask, _, _ = data(3)
    values = np.random.default_rng(3).normal(size=(*rewards.shape, 5)).astype(np.float32)
    advantages = jax.jit(lambda v: ops.gae(rewards, v, mask)[0])
    per_quantile = jax.vmap(advantages, in_axes=2, out_axes=2)(values)
    on_mean = advantages(values.mean(-1))
    per_quantile = np.asarray(per_quantile)
    np.testing.assert_allclose(per_quantile.mean(-1), on_mean, rtol=1e-4, atol=1e-5)


def test_gae_gradient_ignores_masked_junk():
    rewards, values, mask, _, _ = data(4)

    def total(rewards, values):
        return jnp.sum(jnp.square(ops.gae(rewards, values, mask)[0]))

    gradient = jax.jit(jax.grad(total, argnums=(0, 1)))
    clean = gradient(rewards, values)
    grads = gradient(reference.with_junk(rewards, mask), reference.with_junk(values, mask))
    for grad, expected in zip(jax.tree.map(np.asarray, grads), clean, strict=True):
        assert (grad[mask == 0] == 0).all() and np.abs(grad[mask > 0]).min() > 0
        np.testing.assert_allclose(grad, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.05, 2.0])
def test_length_adaptive_lambda_matches_loop(variant, alpha):
    lengths = np.array([0, 1, 2, 19, 20, 21, 400])
    expected = [max(0.0, 1 - 1 / (alpha * n)) if n else 0.0 for n in lengths]
    fun = variant(ops.length_adaptive_lambda, static_argnames="alpha")
    result = fun(lengths, alpha=alpha)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
    assert np.max(result) < 1


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("group_size", [2, 12])
def test_group_relative_matches_loop(variant, group_size, normalize):
    rewards = np.random.default_rng(5).normal(size=12).astype(np.float32)
    fun = variant(ops.group_relative, static_argnames=("group_size", "normalize"))
    result = fun(rewards, group_size=group_size, normalize=normalize)
    expected = reference.group_relative(rewards, group_size, normalize)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("group_size", [2, 12])
def test_rloo_matches_loop(variant, group_size):
    rewards = np.random.default_rng(6).normal(size=12).astype(np.float32)
    result = variant(ops.rloo, static_argnames="group_size")(rewards, group_size=group_size)
    expected = reference.rloo(rewards, group_size)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def test_rloo_known_numbers():
    np.testing.assert_allclose(ops.rloo(np.arange(1, 7), 3), [-1.5, 0, 1.5] * 2, atol=1e-6)


def test_tied_groups_are_exactly_zero_with_finite_gradients(variant):
    gradient = jax.jit(jax.grad(lambda r: ops.group_relative(r, 7)[1]))
    for reward in (0.1, 0.9, -1 / 3, 1e4 / 7):
        rewards = np.full(14, reward, np.float32)
        for fun in (ops.group_relative, ops.rloo):
            result = variant(fun, static_argnames="group_size")(rewards, group_size=7)
            np.testing.assert_array_equal(result, np.zeros(14))
        assert np.isfinite(gradient(rewards)).all()


ONES = np.ones((2, 3))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ops.gae(ONES, ONES, ONES, discount=1.5), ["discount", "1.5", "[0, 1]"]),
        (lambda: ops.gae(ONES, ONES, ONES, lambda_=-0.1), ["lambda_", "-0.1", "[0, 1]"]),
        (lambda: ops.length_adaptive_lambda(np.ones(2), 0.0), ["alpha", "0.0", "positive"]),
        (lambda: ops.group_relative(np.ones(6), 4), ["group_size", "4", "6"]),
        (lambda: ops.group_relative(np.ones(6), 1), ["group_size", "1", "at least 2"]),
        (lambda: ops.rloo(np.ones(6), 0), ["group_size", "0", "at least 2"]),
    ],
)
def test_bad_options_are_named(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    "call",
    [
        lambda: ops.gae(ONES, np.ones((2, 4)), ONES),
        lambda: ops.gae(ONES, ONES, np.ones((3,))),
        lambda: ops.gae(ONES, ONES, ONES, lambda_=np.ones(3)),
        lambda: ops.gae(ONES, ONES, ONES, lambda_=ONES),
        lambda: ops.gae(ONES, ONES, ONES, final_values=np.ones(3)),
        lambda: ops.rloo(ONES, 2),
    ],
)
def test_wrong_shapes_are_refused(call):
    with pytest.raises(AssertionError):
        call()


@pytest.mark.parametrize("normalize", [False, True])
def test_min_variance_against_numpy(variant, normalize):
    rng = np.random.default_rng(5)
    rewards, log_weights = rng.normal(size=(2, 12)).astype(np.float32)
    norms = rng.uniform(0.1, 3.0, 12).astype(np.float32)
    rewards[:3], norms[3:6] = 0.7, 0.0  # a tied group, and one without gradients
    fun = variant(ops.min_variance, static_argnames=("group_size", "normalize"))
    found = fun(rewards, log_weights + 80, norms, group_size=3, normalize=normalize)
    for start in range(0, 12, 3):
        group = slice(start, start + 3)
        r, weights = rewards[group].astype(float), np.exp(2.0 * log_weights[group]) * norms[group]
        weights = weights if weights.sum() > 0 else np.ones(3)
        expected = r - (weights * r).sum() / weights.sum()
        if normalize and np.std(r) > 0:
            expected = expected / (np.std(r, ddof=1) + 1e-6)
        np.testing.assert_allclose(found[group], expected, rtol=2e-4, atol=1e-6)
    np.testing.assert_array_equal(found[:3], 0.0)


def test_min_variance_is_the_best_baseline():
    """Of all constants, it gives the estimate sum_i w_i g_i (r_i - b) the least variance."""
    rng = np.random.default_rng(6)
    rewards, weights, norms = rng.normal(size=8), rng.uniform(0.2, 4, 8), rng.uniform(0.1, 2, 8)
    relative = ops.min_variance(rewards, np.log(weights), norms, 8)
    best = rewards[0] - float(relative[0])

    def second_moment(baseline):
        return np.mean(weights**2 * norms * (rewards - baseline) ** 2)

    assert all(second_moment(best) < second_moment(best + move) for move in (-0.05, 0.05))
    with pytest.raises(ValueError, match="group_size is 3"):
        ops.min_variance(rewards, rewards, norms, 3)
