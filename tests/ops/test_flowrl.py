"""FlowRL's residual at its analytic optimum, its weights and its clamps."""

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


def data(seed=0, shape=(8, 6), spread=0.1, junk=np.nan):
    rng = np.random.default_rng(seed)
    mask = reference.random_mask(rng, *shape)
    old = rng.normal(-2.0, 0.5, shape)
    new, ref = old + rng.normal(0, spread, (2, *shape)) + rng.normal(0, spread, (2, shape[0], 1))
    arrays = [reference.with_junk(x, mask, junk) for x in (new, old, ref)]
    rewards, log_z = rng.normal(size=(2, shape[0])).astype(np.float32)
    return (*arrays, rewards, log_z, mask)


def mean(x, mask):
    rows = [reference.valid_elements(*row) for row in zip(x, mask, strict=True)]
    return np.array([sum(row) / max(len(row), 1) for row in rows])


def total(x, mask):
    return np.array([sum(reference.valid_elements(*row)) for row in zip(x, mask, strict=True)])


def test_the_residual_is_the_definition(variant):
    new, _, ref, rewards, log_z, mask = data()
    fun = variant(ops.flowrl_residual, static_argnames="beta")
    found = fun(log_z, new, ref, rewards, mask, beta=15.0)
    expected = log_z + mean(new, mask) - 15 * rewards - mean(ref, mask)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_residual_and_gradient_are_0_at_the_optimum():
    _, _, ref, rewards, _, mask = data(1)
    log_z = np.full(8, 0.7, np.float32)
    # Per token, log pi = log pi_ref + beta r - log Z: its mean is the tilt of the reference's.
    optimum = ref + (2.0 * rewards - log_z)[:, None]
    full = mask.any(axis=1)

    def loss(log_z, log_probs):
        delta = ops.flowrl_residual(log_z, log_probs, ref, rewards, mask, beta=2.0)
        return jnp.sum(jnp.where(full, jnp.square(delta), 0)), delta

    gradients, delta = jax.grad(loss, (0, 1), has_aux=True)(log_z, optimum)
    np.testing.assert_allclose(delta[full], 0, atol=2e-6)
    for gradient in gradients:
        np.testing.assert_allclose(gradient, 0, atol=5e-6)
    away = jax.grad(loss, (0, 1), has_aux=True)(log_z + 1, optimum)[0]
    np.testing.assert_allclose(away[0][full], 2.0, rtol=1e-4)


def test_the_gradient_reaches_log_z_and_the_policy_alone():
    new, _, ref, rewards, log_z, mask = data(2)

    def summed(*inputs):
        return jnp.sum(ops.flowrl_residual(*inputs, mask, beta=15.0))

    of_z, of_new, of_ref, of_rewards = jax.grad(summed, (0, 1, 2, 3))(log_z, new, ref, rewards)
    lengths = np.maximum(mask.sum(1, keepdims=True), 1)
    np.testing.assert_array_equal(of_z, np.ones(8))
    np.testing.assert_allclose(of_new, mask / lengths, rtol=1e-6)
    np.testing.assert_array_equal(of_ref, np.zeros_like(mask))
    np.testing.assert_array_equal(of_rewards, np.zeros(8))


def test_log_z_of_a_group_is_a_mean_over_its_responses(variant):
    new, _, ref, rewards, _, mask = data(5)
    fun = variant(ops.flowrl_log_z, static_argnames=("group_size", "beta"))
    found = fun(ref, new, rewards, mask, group_size=4, beta=2.0)
    summands = np.exp(2.0 * rewards + mean(ref, mask) - mean(new, mask))
    there = mask.any(axis=1)
    for group in (slice(0, 4), slice(4, 8)):
        expected = math.log(np.mean(summands[group][there[group]]))
        np.testing.assert_allclose(found[group], expected, rtol=1e-5, atol=1e-6)
    assert not there.all()
    empty = fun(ref, new, rewards, 0 * mask, group_size=4, beta=2.0)
    np.testing.assert_array_equal(empty, np.zeros(8))
    stopped = jax.grad(lambda *x: jnp.sum(ops.flowrl_log_z(*x, mask, 4, beta=2.0)), (0, 1, 2))
    for gradient in stopped(ref, new, rewards):
        assert not np.any(gradient)


def test_log_z_is_exact_where_the_sampler_is_the_optimum():
    _, _, ref, rewards, _, mask = data(6)
    optimum = ref + (15 * rewards - 3.5)[:, None].astype(np.float32)
    found = ops.flowrl_log_z(ref, optimum, rewards, mask, 2, beta=15.0)
    np.testing.assert_allclose(found, 3.5, rtol=1e-5)
    delta = ops.flowrl_residual(found, optimum, ref, rewards, mask, beta=15.0)
    np.testing.assert_allclose(delta[mask.any(axis=1)], 0, atol=2e-5)


@pytest.mark.parametrize("kind", ops.FLOWRL_WEIGHTS)
def test_weights_are_bounded_as_each_source_bounds_them(kind, variant):
    new, old, *_, mask = data(3, spread=0.9)
    options = {"clip_low": 0.15, "clip_high": 0.3, "cap": 4.0}
    fun = variant(ops.flowrl_weights, static_argnames=("kind", *options))
    found = np.asarray(fun(new, old, mask, kind=kind, **options))
    plain = np.exp(total(new - old, mask))
    bounded = {"clipped": np.clip(plain, 0.85, 1.3), "capped": np.minimum(plain, 4.0)}
    np.testing.assert_allclose(found, bounded.get(kind, plain), rtol=1e-4)
    assert plain.max() > 4 and plain.min() < 0.85
    gradients = jax.grad(lambda x, y: jnp.sum(ops.flowrl_weights(x, y, mask)), (0, 1))(new, old)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, np.zeros_like(mask))
    huge = ops.flowrl_weights(old + 1e4, old, mask, kind="unclipped")
    np.testing.assert_allclose(huge[1:], math.exp(20.0), rtol=1e-5)


def clipped_gains(ratio, reward):
    return -reward * min(max(ratio, 0.85), 1.3) > -reward * ratio


@pytest.mark.parametrize("kind", ops.FLOWRL_CLAMPS)
def test_means_are_clamped_where_each_variant_says(kind, variant):
    new, old, _, rewards, _, mask = data(4, shape=(24, 6), spread=0.35)
    options = {"clip_low": 0.15, "clip_high": 0.3}
    fun = variant(ops.flowrl_clamp, static_argnames=("kind", *options))
    found = fun(new, old, rewards, mask, kind=kind, **options)
    plain, before = mean(new, mask), mean(old, mask)
    clamped = np.clip(plain, before + math.log(0.85), before + math.log(1.3))
    chosen = []
    for b, row in enumerate(mask):
        ratios = [math.exp(new[b, i] - old[b, i]) for i in range(len(row)) if row[i] > 0]
        if kind == "gspo":
            ratios = [math.exp(plain[b] - before[b])]
        votes = [clipped_gains(ratio, rewards[b]) for ratio in ratios]
        chosen.append(kind == "every" or sum(votes) > 0.5 * len(votes))
    np.testing.assert_allclose(mean(found, mask), np.where(chosen, clamped, plain), rtol=1e-5)
    moved = np.array(chosen) & (np.abs(clamped - plain) > 1e-6)
    assert moved.any() and (kind == "every" or not all(chosen[1:]))
    # Outside of the interval there is no gradient.
    gradient = jax.grad(
        lambda x: jnp.sum(ops.row_mean(fun(x, old, rewards, mask, kind=kind, **options), mask))
    )(new)
    lengths = np.maximum(mask.sum(1, keepdims=True), 1)
    expected = np.where(moved[:, None], 0, mask / lengths)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)
    stopped = jax.grad(
        lambda y, r: jnp.sum(ops.row_mean(fun(new, y, r, mask, kind=kind, **options), mask)), (0, 1)
    )(old, rewards)
    assert not np.any(stopped[0]) and not np.any(stopped[1])


X, V = np.zeros((2, 3), np.float32), np.zeros(2, np.float32)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ops.flowrl_residual(V, X, X, V, X, beta=0.0), ["beta", "0.0", "positive"]),
        (lambda: ops.flowrl_log_z(X, X, V, X, 2, beta=-1.0), ["beta", "-1.0", "positive"]),
        (lambda: ops.flowrl_log_z(X, X, V, X, 3, beta=1.0), ["group_size", "3", "divisor"]),
        (lambda: ops.flowrl_weights(X, X, X, kind="tis"), ["kind", "'tis'", "capped"]),
        (lambda: ops.flowrl_weights(X, X, X, clip_low=1.0), ["clip_low", "1.0", "below 1"]),
        (lambda: ops.flowrl_weights(X, X, X, cap=0.0), ["cap", "0.0", "positive"]),
        (lambda: ops.flowrl_clamp(X, X, V, X, kind="ppo"), ["kind", "'ppo'", "dapo"]),
        (lambda: ops.flowrl_clamp(X, X, V, X, clip_high=-0.1), ["clip_high", "-0.1"]),
    ],
)
def test_bad_options_are_named(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    "call",
    [
        lambda: ops.flowrl_residual(X, X, X, V, X, beta=1.0),
        lambda: ops.flowrl_residual(V, X, X, V[:1], X, beta=1.0),
        lambda: ops.flowrl_log_z(X, X, V[:1], X, 1, beta=1.0),
        lambda: ops.flowrl_weights(X, X[:1], X),
        lambda: ops.flowrl_clamp(X, X, V[:1], X),
    ],
)
def test_wrong_shapes_are_refused(call):
    with pytest.raises(AssertionError):
        call()
