import statistics

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


def draws(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("num", [1, 2, 9])
@pytest.mark.parametrize("level", [0.0, 0.04, 0.25, 0.5, 0.75, 1.0])
def test_a_quantile_at_any_level_matches_numpy(num, level, variant):
    q = np.sort(draws(num, 2, 3, num))
    found = variant(lambda x: ops.quantile_at(x, level))(q)
    want = np.quantile(q.astype(float), level, axis=-1, method="hazen")
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num", [1, 4, 7])
def test_bernoulli_quantiles_are_sorted_at_the_ends_and_have_the_probability_as_mean(num, variant):
    p = np.linspace(0.0, 1.0, 24, dtype=np.float32).reshape(4, 6)
    q = np.asarray(variant(lambda x: ops.bernoulli_quantiles(x, num))(p))
    assert q.shape == (4, 6, num) and q.min() == 0.0 and q.max() == 1.0
    np.testing.assert_allclose(q.mean(axis=-1), p, atol=1e-6)
    assert np.all(np.diff(q, axis=-1) >= 0.0)
    assert np.all(np.sum((q > 0.0) & (q < 1.0), axis=-1) <= 1)
    with pytest.raises(ValueError, match="num is 0"):
        ops.bernoulli_quantiles(p, 0)


@pytest.mark.parametrize("num", [1, 2, 65])
def test_levels_and_noise_match_the_standard_library(num):
    levels = [(j + 0.5) / num for j in range(num)]
    np.testing.assert_allclose(ops.quantile_levels(num), levels, rtol=1e-6)
    normal = [statistics.NormalDist().inv_cdf(level) for level in levels]
    noise = jax.jit(ops.noise_quantiles, static_argnums=0)(num)
    np.testing.assert_allclose(noise, normal, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(noise, -np.asarray(noise)[::-1])


@pytest.mark.parametrize("kappa", [0.0, 0.3, 1.0])
def test_quantile_huber_matches_loop(variant, kappa):
    quantiles, targets = draws(0, 2, 3, 5), 2 * draws(1, 2, 3, 4)
    taus = np.asarray(ops.quantile_levels(5))
    fun = variant(ops.quantile_huber, static_argnames="kappa")
    result = fun(quantiles, targets, taus, kappa=kappa)
    for index in np.ndindex(2, 3):
        expected = reference.quantile_huber(quantiles[index], targets[index], taus, kappa)
        np.testing.assert_allclose(result[index], expected, rtol=1e-5)


def test_right_levels_end_at_one():
    np.testing.assert_allclose(ops.quantile_levels(4, "right"), [0.25, 0.5, 0.75, 1.0])


def test_levels_may_differ_and_terms_stand_by_quantile(variant):
    quantiles, targets = draws(0, 2, 3, 5), 2 * draws(1, 2, 3, 4)
    taus = np.random.default_rng(2).uniform(size=quantiles.shape).astype(np.float32)
    whole = variant(ops.quantile_huber)(quantiles, targets, taus)
    terms = variant(ops.quantile_huber_by_level)(quantiles, targets, taus)
    for index in np.ndindex(2, 3):
        q, y, tau = quantiles[index], targets[index], taus[index]
        expected = [
            reference.quantile_huber(q[j : j + 1], y, tau[j : j + 1], 1.0) for j in range(5)
        ]
        np.testing.assert_allclose(terms[index], expected, rtol=1e-5)
        np.testing.assert_allclose(whole[index], np.mean(expected), rtol=1e-5)
    slopes = jax.grad(lambda *x: ops.quantile_huber_by_level(*x).sum(), argnums=(0, 1, 2))
    live, *stopped = slopes(quantiles, targets, taus)
    assert np.abs(live).max() > 0
    for gradient in stopped:
        np.testing.assert_array_equal(gradient, np.zeros(gradient.shape))


@pytest.mark.parametrize("kappa", [0.0, 0.3])
def test_slopes_of_many_pairs_are_those_of_all_pairs_at_once(kappa):
    """37 targets, a multiple of no turn of the loop, in no order, far from 0."""
    quantiles, targets = 1e3 + draws(0, 2, 70), 1e3 + 2 * draws(1, 2, 37)
    taus, weights = np.asarray(ops.quantile_levels(70, "right")), draws(2, 2, 70)

    def loss(q):
        terms = ops.quantile_huber_by_level(q, targets, taus, kappa)
        return ops.quantile_huber(q, targets, taus, kappa).sum() + (weights * terms).sum()

    found = jax.jit(jax.grad(loss))(quantiles)
    errors = targets[:, None, :] - quantiles[:, :, None]
    inner = np.clip(errors / kappa, -1, 1) if kappa else np.sign(errors)
    by_level = -(np.abs(taus[:, None] - (errors < 0)) * inner).mean(axis=-1)
    np.testing.assert_allclose(found, (1 / 70 + weights) * by_level, rtol=1e-4, atol=1e-6)


def test_head_consistency_is_the_mean_over_pairs(variant):
    heads = draws(3, 2, 3, 4, 5)
    found = variant(ops.head_consistency)(heads)
    pairs = [(i, k) for i in range(4) for k in range(i + 1, 4)]
    expected = np.mean(
        [((heads[:, :, i] - heads[:, :, k]) ** 2).sum(axis=-1) for i, k in pairs], axis=0
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    gradient = jax.grad(lambda x: ops.head_consistency(x).sum())(heads)
    assert np.all(np.any(gradient, axis=(0, 1, 3)))  # of every head
    same = np.broadcast_to(heads[:, :, :1], heads.shape)
    np.testing.assert_allclose(ops.head_consistency(same), np.zeros((2, 3)), atol=1e-6)


@pytest.mark.parametrize("kappa", [0.0, 0.5, 1.0])
def test_quantile_huber_matches_rlax_up_to_their_sum(kappa):
    rlax = pytest.importorskip("rlax")
    quantiles, targets, taus = draws(2, 6), draws(3, 4), ops.quantile_levels(6)

    def theirs(q):  # sums over the quantiles and does not divide by kappa
        return rlax.quantile_regression_loss(q, taus, jnp.asarray(targets), kappa) / (kappa or 1)

    def ours(q):
        return 6 * ops.quantile_huber(q, targets, taus, kappa)

    result, expected = (
        jax.jit(jax.value_and_grad(f))(jnp.asarray(quantiles)) for f in (ours, theirs)
    )
    np.testing.assert_allclose(result[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(result[1], expected[1], rtol=1e-5, atol=1e-6)


def test_quantile_huber_known_number():
    fun = jax.jit(ops.quantile_huber, static_argnums=3)
    loss = fun(np.array([-1.0, 3]), np.array([-3.0, 4, 2]), np.array([0.2, 0.7]), 0.0)
    np.testing.assert_allclose(2 * float(loss), 2.0, rtol=1e-6)


def test_quantile_huber_target_is_stopped_and_extremes_are_finite():
    quantiles, targets = np.array([[0.0, 1e30, 1.0]]), np.array([[0.0, -1e30]])
    gradient = jax.jit(
        jax.grad(lambda q, y, t: ops.quantile_huber(q, y, t).sum(), argnums=(0, 1, 2))
    )
    grads = gradient(quantiles, targets, ops.quantile_levels(3))
    assert np.isfinite(grads[0]).all() and np.abs(grads[0]).max() > 0
    np.testing.assert_array_equal(grads[1], np.zeros((1, 2)))
    np.testing.assert_array_equal(grads[2], np.zeros(3))


def test_pinball_loss_is_least_at_the_true_quantiles():
    targets, taus = draws(4, 999), (np.arange(4, dtype=np.float32) + 0.5) / 4
    best = np.quantile(targets, taus).astype(np.float32)

    @jax.jit
    def loss(shift):
        return ops.quantile_huber(best + shift, targets, taus, 0.0)

    shifts = np.linspace(-0.5, 0.5, 21, dtype=np.float32)
    assert np.argmin([loss(s) for s in shifts]) == 10


def test_wasserstein1_matches_scipy_and_stops_its_target(variant):
    from scipy.stats import wasserstein_distance

    q, q_target = np.sort(draws(5, 3, 8)), np.sort(2 * draws(6, 3, 8) + 1)
    result = variant(ops.wasserstein1)(q, q_target)
    expected = [wasserstein_distance(a, b) for a, b in zip(q, q_target, strict=True)]
    np.testing.assert_allclose(result, expected, rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda a, b: ops.wasserstein1(a, b).sum(), argnums=(0, 1)))
    grads = gradient(q, q_target)
    np.testing.assert_allclose(grads[0], np.sign(q - q_target) / 8)
    np.testing.assert_array_equal(grads[1], np.zeros((3, 8)))


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_crps_matches_all_pairs_loop(variant, offset):
    samples, x = draws(7, 2, 3, 6) + np.float32(offset), draws(8, 2, 3) + np.float32(offset)
    result = variant(ops.crps)(samples, x)
    for index in np.ndindex(2, 3):
        expected = reference.crps(samples[index], x[index])
        np.testing.assert_allclose(result[index], expected, rtol=1e-4, atol=1e-5)


def test_crps_of_one_sample_is_the_distance_and_of_a_normal_the_closed_form():
    np.testing.assert_allclose(jax.jit(ops.crps)(np.array([3.0]), np.array(1.0)), 2.0)
    normal = statistics.NormalDist()
    quantiles = np.array([normal.inv_cdf((j + 0.5) / 2000) for j in range(2000)])
    for x in (0.0, 1.3):
        expected = x * (2 * normal.cdf(x) - 1) + 2 * normal.pdf(x) - np.pi**-0.5
        np.testing.assert_allclose(jax.jit(ops.crps)(quantiles, np.array(x)), expected, rtol=2e-3)


def test_crps_gradient_reaches_the_samples_only():
    samples, x = draws(9, 2, 5), draws(10, 2)
    grads = jax.jit(jax.grad(lambda s, x: ops.crps(s, x).sum(), argnums=(0, 1)))(samples, x)
    np.testing.assert_array_equal(grads[1], np.zeros(2))
    own = (samples[:, :, None] > samples[:, None, :]) * 2.0 - 1 + np.eye(5)
    expected = np.sign(samples - x[:, None]) / 5 - own.sum(-1) / 25
    np.testing.assert_allclose(grads[0], expected, rtol=1e-5, atol=1e-6)


def test_cdf_matches_loop_with_ties_and_carries_no_gradient(variant):
    quantiles = np.round(2 * draws(14, 30, 7)) / 2
    x = np.round(2 * draws(15, 30)) / 2
    result = variant(ops.cdf)(quantiles, x)
    expected = [reference.cdf(q, y) for q, y in zip(quantiles, x, strict=True)]
    np.testing.assert_allclose(result, expected, rtol=1e-6)
    assert (quantiles == x[:, None]).any()
    grads = jax.jit(jax.grad(lambda q, y: ops.cdf(q, y).sum(), argnums=(0, 1)))(quantiles, x)
    np.testing.assert_array_equal(grads[0], np.zeros((30, 7)))
    np.testing.assert_array_equal(grads[1], np.zeros(30))


Q, Y = np.zeros((2, 3)), np.zeros((2,))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ops.quantile_levels(0), ["num", "0", "at least 1"]),
        (lambda: ops.quantile_levels(4, "left"), ["kind", "left", "midpoint, right"]),
        (lambda: ops.head_consistency(Q[:1]), ["the number of heads", "1", "at least 2"]),
        (lambda: ops.noise_quantiles(-1), ["num", "-1", "at least 1"]),
        (lambda: ops.quantile_huber(Q, Q, np.ones(3), -1.0), ["kappa", "-1.0", "at least 0"]),
    ],
)
def test_bad_options_are_named(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    "call",
    [
        lambda: ops.quantile_huber(Q, np.zeros((3, 3)), np.ones(3)),
        lambda: ops.quantile_huber(Q, Q, np.ones(2)),
        lambda: ops.quantile_huber_by_level(Q, Q, np.ones((3, 3))),
        lambda: ops.wasserstein1(Q, np.zeros((2, 4))),
        lambda: ops.crps(Q, np.zeros(3)),
        lambda: ops.cdf(Q, np.zeros((2, 1))),
    ],
)
def test_wrong_shapes_are_refused(call):
    with pytest.raises(AssertionError):
        call()


def test_a_level_outside_its_range_is_named():
    with pytest.raises(ValueError, match="level is 1.5; allowed: a number in"):
        ops.quantile_at(np.ones(3, np.float32), 1.5)
