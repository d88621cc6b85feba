"""Lambda-mixture and lambda-average targets against loops, enumeration and identities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as plain
import reference_critic as reference
from reference import random_mask

from dfpo_jax import ops


def example(seed=0, batch=6, time=7, last=5):
    rng = np.random.default_rng(seed)
    mask = random_mask(rng, batch, time)
    rewards = rng.normal(size=(batch, time)).astype(np.float32)
    values = rng.normal(size=(batch, time, last)).astype(np.float32)
    return rng, mask, rewards, values


def key_of(seed):
    return jax.random.key(seed, impl="rbg")  # compiles faster than the default


def spoil(array, mask):
    """NaN wherever the mask is 0: those entries must be ignored."""
    holes = np.asarray(mask) == 0
    array = array.copy()
    array[holes] = np.nan
    return array


@pytest.mark.parametrize("lambda_,discount", [(0.0, 1.0), (0.6, 0.9), (1.0, 0.9)])
def test_mixture_matches_loop(lambda_, discount, variant):
    _, mask, rewards, bootstrap = example()
    truncated = np.array([True, False, True, True, False, True])
    last = np.zeros_like(mask)
    for b, row in enumerate(mask):
        if row.any() and not truncated[b]:
            last[b, np.flatnonzero(row)[-1]] = 1  # ignored there, so NaN must do no harm
    key = key_of(3)
    take = np.asarray(jax.random.uniform(key, bootstrap.shape)) < lambda_
    want = reference.lambda_mixture(take, rewards, bootstrap, mask, discount, truncated)
    got = variant(
        lambda k, r, b, m, c: ops.lambda_mixture(
            k, r, b, m, discount=discount, lambda_=lambda_, truncated=c
        )
    )(
        key,
        jnp.asarray(spoil(rewards, mask)),
        jnp.asarray(spoil(bootstrap, mask * (1 - last))),
        jnp.asarray(mask),
        jnp.asarray(truncated),
    )
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_mixture_law_equals_enumeration():
    """Point-mass bootstraps: every outcome of the draws gives its own value."""
    rewards, bootstrap = [0.5, -1.0, 2.0, 0.25], [3.0, -7.0, 11.0, 100.0]
    discount, lambda_, draws = 0.9, 0.7, 40_000
    samples = ops.lambda_mixture(
        key_of(0),
        jnp.asarray([rewards]),
        jnp.broadcast_to(jnp.asarray(bootstrap)[None, :, None], (1, 4, draws)),
        jnp.ones((1, 4)),
        discount=discount,
        lambda_=lambda_,
    )[0, 0]
    law = reference.mixture_law(rewards, bootstrap, discount, lambda_)
    assert len(law) == 4 and abs(sum(law.values()) - 1) < 1e-9
    seen = np.asarray(samples)
    total = 0
    for value, probability in law.items():
        count = np.sum(np.abs(seen - value) < 1e-3)
        total += count
        tolerance = 5 * np.sqrt(draws * probability * (1 - probability))
        assert abs(count - draws * probability) < tolerance
    assert total == draws


def test_mixture_mean_is_the_lambda_return():
    """Mean over draws equals advantage plus value, with holes, a discount and a cut-off row."""
    rng, mask, rewards, values = example(seed=1, time=6, last=1)
    values = values[..., 0]
    final = rng.normal(size=6).astype(np.float32)
    truncated = np.array([False, True, False, True, False, True])
    draws = 20_000
    bootstrap = np.zeros((6, 6, draws), np.float32)
    for b, row in enumerate(mask):
        valid = np.flatnonzero(row)
        for n, i in enumerate(valid):
            centre = final[b] if i == valid[-1] else values[b, valid[n + 1]]
            bootstrap[b, i] = centre + rng.normal(size=draws)
            bootstrap[b, i] += centre - bootstrap[b, i].mean()
    got = ops.lambda_mixture(
        key_of(1),
        jnp.asarray(rewards),
        jnp.asarray(bootstrap),
        jnp.asarray(mask),
        discount=0.9,
        lambda_=0.8,
        truncated=jnp.asarray(truncated),
    )
    for b, row in enumerate(mask):
        end = final[b] if truncated[b] else 0.0
        want = reference.gae_returns(rewards[b], values[b], row, 0.9, 0.8, end)
        want = reference.carry_back(want, row)
        spread = np.asarray(got[b]).std(axis=-1)
        error = np.abs(np.asarray(got[b]).mean(axis=-1) - want)
        assert np.all(error <= 5 * spread / np.sqrt(draws) + 1e-5)


def test_mixture_keeps_the_spread_that_the_average_loses():
    """Two tokens, return N(0, 1) known at both: the mixture has variance 1, the average less."""
    noise = jnp.asarray(np.random.default_rng(2).normal(size=(1, 2, 20_000)), jnp.float32)
    ones = jnp.ones((1, 2))
    options = dict(discount=1.0, lambda_=0.5)
    mixture = ops.lambda_mixture(
        key_of(2), 0 * ones, noise, ones, truncated=jnp.array([True]), **options
    )
    np.testing.assert_allclose(np.asarray(mixture[0, 0]).var(), 1.0, atol=0.05)
    average = ops.lambda_average(0 * ones, noise, ones, final_values=-noise[:, 1], **options)
    assert np.asarray(average[0, 0]).var() < 0.1


def test_mixture_draws_one_coin_per_row_token_and_sample():
    zeros, bootstrap = jnp.zeros((2, 3)), jnp.ones((2, 3, 64))
    mixture = jax.jit(functools.partial(ops.lambda_mixture, lambda_=0.5))
    out = mixture(key_of(4), zeros, bootstrap, jnp.ones((2, 3)))
    coins = np.asarray(out[:, :2]).reshape(4, 64)  # 1 where some bootstrap was used
    assert len(np.unique(coins, axis=0)) == 4
    assert all(0 < row.sum() < 64 for row in coins)
    np.testing.assert_array_equal(out[:, 2], np.zeros((2, 64)))


def test_lambda_per_row(variant):
    _, mask, rewards, bootstrap = example(seed=5)
    rates = jnp.asarray([0.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    args = (jnp.asarray(rewards), jnp.asarray(bootstrap), jnp.asarray(mask))
    key = key_of(5)
    mixture, average = jax.jit(ops.lambda_mixture), jax.jit(ops.lambda_average)
    mixed = variant(lambda lam, *a: ops.lambda_mixture(key, *a, lambda_=lam))(rates, *args)
    averaged = variant(lambda lam, *a: ops.lambda_average(*a, lambda_=lam))(rates, *args)
    for parity, rate in ((0, 0.0), (1, 1.0)):
        one = mixture(key, *args, lambda_=jnp.float32(rate))
        np.testing.assert_array_equal(mixed[parity::2], one[parity::2])
        one = average(*args, lambda_=jnp.float32(rate))
        np.testing.assert_allclose(averaged[parity::2], one[parity::2], rtol=1e-6)


@pytest.mark.parametrize("with_final", [False, True])
def test_average_matches_gae_per_quantile_and_on_means(with_final, variant):
    rng, mask, rewards, values = example(seed=7)
    final = rng.normal(size=(6, 5)).astype(np.float32) if with_final else None
    got = variant(
        lambda r, v, m, f: ops.lambda_average(r, v, m, discount=0.9, lambda_=0.8, final_values=f)
    )(
        jnp.asarray(spoil(rewards, mask)),
        jnp.asarray(spoil(values, mask)),
        jnp.asarray(mask),
        None if final is None else jnp.asarray(final),
    )
    ends = np.zeros((6, 5)) if final is None else final
    for b, row in enumerate(mask):
        for j in range(5):
            want = reference.gae_returns(rewards[b], values[b, :, j], row, 0.9, 0.8, ends[b, j])
            want = reference.carry_back(want, row)
            np.testing.assert_allclose(got[b, :, j], want, rtol=1e-5, atol=1e-5)
        means = values[b].mean(axis=-1)
        want = reference.gae_returns(rewards[b], means, row, 0.9, 0.8, ends[b].mean())
        want = reference.carry_back(want, row)
        np.testing.assert_allclose(np.asarray(got[b]).mean(axis=-1), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("with_final", [False, True])
def test_distributional_gae_is_gae_for_each_quantile(with_final, variant):
    rng, mask, rewards, values = example(seed=7)
    final = rng.normal(size=(6, 5)).astype(np.float32) if with_final else None
    got = variant(
        lambda r, v, m, f: ops.distributional_gae(
            r, v, m, discount=0.9, lambda_=0.8, final_values=f
        )
    )(spoil(rewards, mask), spoil(values, mask), mask, final)
    for j in range(5):
        end = None if final is None else final[:, j]
        want, _ = plain.gae(rewards, values[..., j], mask, 0.9, 0.8, end)
        np.testing.assert_allclose(got[..., j], want, rtol=1e-5, atol=1e-5)
    # The mean over the quantiles is the advantage of the mean values.
    end = None if final is None else final.mean(axis=-1)
    want, _ = plain.gae(rewards, values.mean(axis=-1), mask, 0.9, 0.8, end)
    np.testing.assert_allclose(np.asarray(got).mean(axis=-1), want, rtol=1e-5, atol=1e-5)


def test_known_gae_numbers():
    """Lambda 0, reward 5 at the end, values 1, 2, 3: returns 2, 3, 5."""
    returns = ops.lambda_average(
        jnp.array([[0.0, 0.0, 5.0]]),
        jnp.array([[[1.0], [2.0], [3.0]]]),
        jnp.ones((1, 3)),
        lambda_=0.0,
    )
    np.testing.assert_allclose(returns[0, :, 0], [2.0, 3.0, 5.0])


def test_targets_carry_no_gradient():
    _, mask, rewards, values = example()
    args = (jnp.asarray(rewards), jnp.asarray(values), jnp.asarray(mask))
    key = key_of(0)
    mixture = functools.partial(ops.lambda_mixture, key)
    for fn in (mixture, ops.lambda_average, ops.distributional_gae):
        assert float(jnp.abs(fn(*args)).sum()) > 0
        slopes = jax.grad(lambda r, v, fn=fn: fn(r, v, args[2]).sum(), argnums=(0, 1))
        gradients = jax.jit(slopes)(*args[:2])
        for gradient in gradients:
            np.testing.assert_array_equal(gradient, np.zeros(gradient.shape))


def test_bad_arguments():
    ones, key = jnp.ones((1, 2)), key_of(0)
    with pytest.raises(ValueError, match=r"lambda_ is 1.5; allowed"):
        ops.lambda_mixture(key, ones, ones[..., None], ones, lambda_=1.5)
    with pytest.raises(ValueError, match=r"discount is -1; allowed"):
        ops.lambda_average(ones, ones[..., None], ones, discount=-1)
    with pytest.raises(ValueError, match=r"lambda_ is -0.1; allowed"):
        ops.distributional_gae(ones, ones[..., None], ones, lambda_=-0.1)
    with pytest.raises(AssertionError):  # whole-number rewards would turn 0.75 into 0
        ops.lambda_mixture(key, ones.astype(jnp.int32), ones[..., None], ones)
    with pytest.raises(AssertionError):
        ops.lambda_average(ones, jnp.ones((1, 3, 1)), ones)
