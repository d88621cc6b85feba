"""Risk measures and tail penalties against loops, closed forms and the gradient contract."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_critic as reference
from reference import random_mask, tail_aware_weights, with_junk

from dfpo_jax import ops


def quantiles(seed, *shape):
    rng = np.random.default_rng(seed)
    return np.sort(rng.standard_t(3, size=shape), axis=-1).astype(np.float32)


def rows(fn, *arrays):
    """Apply a function of vectors to the last axis of arrays [2, 3, ...]."""
    index = itertools.product(range(2), range(3))
    return np.array([fn(*(a[i] for a in arrays)) for i in index]).reshape(2, 3)


@pytest.mark.parametrize("num,level", [(7, 0.1), (7, 0.37), (1, 0.37), (32, 1.0)])
def test_tail_means_match_loop(num, level, variant):
    q = quantiles(num, 2, 3, num)
    low = variant(lambda x: ops.cvar(x, level))(jnp.asarray(q))
    high = variant(lambda x: ops.upper_cvar(x, level))(jnp.asarray(q))
    close = dict(rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(low, rows(lambda x: reference.tail_mean(x, level), q), **close)
    want = rows(lambda x: reference.tail_mean(x, level, upper=True), q)
    np.testing.assert_allclose(high, want, **close)
    np.testing.assert_allclose(high, -ops.cvar(-jnp.asarray(q)[..., ::-1], level), **close)
    assert np.all(low <= q.mean(axis=-1) + 1e-5) and np.all(high >= q.mean(axis=-1) - 1e-5)


def test_fractional_tail_is_the_mean_of_finer_copies():
    """Tail 0.3 of 7 quantiles: each cut in 10 equal parts, the lowest 21 of 70."""
    q = quantiles(3, 7)
    want = np.repeat(q, 10)[:21].mean()
    np.testing.assert_allclose(ops.cvar(jnp.asarray(q), 0.3), want, rtol=1e-6)
    np.testing.assert_allclose(ops.cvar(jnp.asarray(q), 1.0), q.mean(), rtol=1e-5)
    np.testing.assert_allclose(ops.cvar(jnp.asarray(q), 0.01), q[0], rtol=1e-6)
    np.testing.assert_allclose(ops.upper_cvar(jnp.asarray(q), 0.01), q[-1], rtol=1e-6)


def test_closed_forms_on_a_gaussian():
    num, mean, std, alpha = 2048, 0.5, 2.0, 0.1
    normal = reference.NORMAL
    q = jnp.asarray([mean + std * normal.inv_cdf((j + 0.5) / num) for j in range(num)])

    def value(measure, **options):
        return jax.jit(lambda x: ops.risk_value(x, measure=measure, **options))(q)

    tail = mean - std * normal.pdf(normal.inv_cdf(alpha)) / alpha
    np.testing.assert_allclose(value("mean"), mean, atol=1e-3)
    np.testing.assert_allclose(value("cvar", alpha=alpha), tail, atol=5e-3)
    mixed = 0.7 * mean + 0.3 * tail
    np.testing.assert_allclose(value("mean_cvar", alpha=alpha, eta=0.3), mixed, atol=5e-3)
    for shift in (0.75, -0.5):
        got = value("wang", wang_shift=shift)
        np.testing.assert_allclose(got, mean - shift * std, atol=2e-2)


def test_risk_values_match_loop(variant):
    q = quantiles(5, 2, 3, 9)

    def value(measure, **options):
        return variant(lambda x: ops.risk_value(x, measure=measure, **options))(jnp.asarray(q))

    tail = rows(lambda x: reference.tail_mean(x, 0.25), q)
    np.testing.assert_allclose(value("mean"), q.mean(axis=-1), rtol=1e-5)
    np.testing.assert_allclose(value("cvar", alpha=0.25), tail, rtol=1e-5)
    mixed = 0.4 * q.mean(axis=-1) + 0.6 * tail
    np.testing.assert_allclose(value("mean_cvar", alpha=0.25, eta=0.6), mixed, rtol=1e-5)
    want = rows(lambda x: reference.wang(x, 0.4), q)
    np.testing.assert_allclose(value("wang", wang_shift=0.4), want, rtol=1e-4, atol=1e-5)
    assert set(ops.RISK_MEASURES) == {"mean", "cvar", "mean_cvar", "wang"}


@pytest.mark.parametrize("measure", ops.RISK_MEASURES)
def test_risk_values_are_coherent_in_shift_scale_and_order(measure):
    q = jnp.asarray(quantiles(6, 2, 3, 8))
    risk = jax.jit(lambda x: ops.risk_value(x, measure=measure))
    np.testing.assert_allclose(risk(2.0 * q + 1.0), 2.0 * risk(q) + 1.0, rtol=1e-5, atol=1e-5)
    weights = jax.jit(jax.grad(risk))(q[0, 0])
    assert np.all(weights >= 0)
    np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-6)
    assert np.all(np.diff(weights) <= 1e-7)  # averse: never more weight on better outcomes


def penalties(alpha, beta):
    """Every penalty with a target: (ours on arrays, plain on vectors)."""
    ref = reference
    return {
        "cvar": (
            lambda q, y: ops.cvar_penalty(q, y, alpha),
            lambda q, y: (ref.tail_mean(q, alpha) - ref.tail_mean(y, alpha)) ** 2,
        ),
        "gain": (
            lambda q, y: ops.upper_gain_penalty(q, y, beta),
            lambda q, y: (ref.tail_mean(q, beta, True) - ref.tail_mean(y, beta, True)) ** 2,
        ),
        "mean": (ops.mean_shift_penalty, lambda q, y: max(y.mean() - q.mean(), 0.0)),
        "shape": (
            lambda q, y: ops.tail_shape_penalty(q, y, alpha, beta),
            lambda q, y: ref.tail_shape(q, y, alpha, beta),
        ),
    }


@pytest.mark.parametrize("name", ["cvar", "gain", "mean", "shape"])
def test_penalties_match_loop_and_stop_their_target(name, variant):
    ours, plain = penalties(0.3, 0.45)[name]
    q, target = quantiles(7, 2, 3, 10), quantiles(8, 2, 3, 16)
    got = variant(ours)(jnp.asarray(q), jnp.asarray(target))
    want = rows(plain, q, target)
    assert np.any(want > 0)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6)
    slopes = jax.jit(jax.grad(lambda a, b: ours(a, b).sum(), argnums=(0, 1)))
    live, stopped = slopes(jnp.asarray(q), jnp.asarray(target))
    assert np.all(np.isfinite(live)) and np.abs(live).max() > 0
    np.testing.assert_array_equal(stopped, np.zeros(target.shape))
    np.testing.assert_allclose(ours(jnp.asarray(q), jnp.asarray(q)), np.zeros((2, 3)), atol=1e-7)
    equal = slopes(jnp.asarray(q), jnp.asarray(q))[0]
    np.testing.assert_allclose(equal, np.zeros(q.shape), atol=1e-6)


def test_tail_shape_is_one_sided():
    """Costs: a lower tail wider or an upper one narrower than the target's, not the reverse."""
    target = jnp.asarray([-4.0, -2.0, 0.0, 0.0, 2.0, 4.0])
    low, high = target.at[0].set(-8.0), target.at[5].set(8.0)
    calm, flat = target.at[0].set(-2.5), target.at[5].set(2.5)

    def cost(q):
        return float(ops.tail_shape_penalty(q, target, 1 / 3, 1 / 3))

    assert cost(high) == cost(calm) == 0.0
    np.testing.assert_allclose(cost(low), 9.0 - 1.0, rtol=1e-5)
    np.testing.assert_allclose(cost(flat), 1.0 - 0.0625, rtol=1e-5)


def test_mean_shift_is_one_sided():
    target = jnp.asarray([0.0, 1.0, 2.0])
    assert ops.mean_shift_penalty(target + 0.5, target) == 0.0
    np.testing.assert_allclose(ops.mean_shift_penalty(target - 0.5, target), 0.5)


def test_tail_curvature_matches_loop(variant):
    alpha, beta = 0.3, 0.45
    q = quantiles(9, 2, 3, 10)
    got = variant(lambda x: ops.tail_curvature_penalty(x, alpha, beta))(jnp.asarray(q))
    want = rows(lambda x: reference.tail_curvature(x, alpha, beta), q)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6)
    slope = jax.jit(jax.grad(lambda x: ops.tail_curvature_penalty(x, alpha, beta).sum()))
    gradient = slope(jnp.asarray(q))
    assert np.all(np.isfinite(gradient))


def test_tail_curvature_sign():
    """Free for a Gaussian's quantiles (concave, then convex); costs for the uniform arcsine's."""
    inner = jnp.asarray([reference.NORMAL.inv_cdf((j + 0.5) / 16) for j in range(16)])
    assert ops.tail_curvature_penalty(inner, 0.25, 0.25) == 0.0
    outer = -jnp.cos(jnp.pi * (jnp.arange(16) + 0.5) / 16)  # mass piled up at both ends
    assert ops.tail_curvature_penalty(outer, 0.25, 0.25) > 0.01


def plain_robust(q, radius, lowest):
    """Moves the mass `radius` from the top to the lowest value, value by value."""
    mass, left = [1.0 / len(q)] * len(q), radius
    for j in reversed(range(len(q))):
        taken = min(mass[j], left)
        mass[j], left = mass[j] - taken, left - taken
    return radius * lowest + sum(m * float(x) for m, x in zip(mass, q, strict=True))


@pytest.mark.parametrize("radius", [0.0, 0.25, 0.37, 1.0])
def test_the_robust_value_moves_mass_to_the_lowest_value(radius, variant):
    q = quantiles(11, 2, 3, 7)
    got = variant(lambda x: ops.robust_value(x, radius=radius, lowest=-9.0))(jnp.asarray(q))
    want = rows(lambda x: plain_robust(x, radius, -9.0), q)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    grounded = ops.robust_value(jnp.asarray(q), radius=radius, lowest=0.0)
    lower = 0.0 if radius == 1.0 else ops.cvar(jnp.asarray(q), 1.0 - radius)
    np.testing.assert_allclose(grounded, (1.0 - radius) * lower, rtol=1e-5, atol=1e-6)


def test_the_robust_value_is_the_maximum_of_rfqis_dual():
    """max over eta of (1 - radius) eta - mean (eta - v)_+, for values and eta from 0 up."""
    v, radius = np.sort(np.random.default_rng(0).uniform(0.0, 3.0, 7)), 0.3
    etas = np.linspace(0.0, 4.0, 40_001)[:, None]
    dual = (1.0 - radius) * etas[:, 0] - np.maximum(etas - v, 0.0).mean(axis=1)
    got = ops.robust_value(jnp.asarray(v), radius=radius, lowest=0.0)
    np.testing.assert_allclose(got, dual.max(), atol=1e-4)


def test_risk_weights_and_what_they_emphasise(variant):
    levels = ops.quantile_levels(5, "right")
    found = {
        kind: variant(lambda x, kind=kind: ops.risk_weights(x, emphasis=kind, rate=2.0))(levels)
        for kind in ops.RISK_EMPHASES
    }
    lower = np.exp(-2.0 * np.array([0.2, 0.4, 0.6, 0.8, 1.0]))
    upper = np.exp(-2.0 * np.array([0.8, 0.6, 0.4, 0.2, 0.0]))
    np.testing.assert_allclose(found["lower"], lower, rtol=1e-5)
    np.testing.assert_allclose(found["upper"], upper, rtol=1e-5)
    np.testing.assert_allclose(found["mean_upper"], np.full(5, upper.mean()), rtol=1e-5)
    gradient = jax.grad(lambda x: ops.risk_weights(x).sum())(levels)
    np.testing.assert_array_equal(gradient, np.zeros(5))


# --- weights of the tail -------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["upper", "lower"])
@pytest.mark.parametrize("temperature", [0.05, 2.0])
def test_tail_aware_weights_match_loop(side, temperature, variant):
    rng = np.random.default_rng(0)
    mask = random_mask(rng, 7, 9)
    returns, quantile = rng.normal(size=(2, 7, 9)).astype(np.float32)
    options = {"temperature": temperature, "tail": 0.3, "side": side}
    found = variant(lambda *x: ops.tail_aware_weights(*x, **options))(
        with_junk(returns, mask), with_junk(quantile, mask, np.inf), mask
    )
    want = tail_aware_weights(returns, quantile, mask, temperature, 0.3, side)
    np.testing.assert_allclose(found, want, rtol=1e-4)
    if temperature == 2.0:  # no weight is clipped
        np.testing.assert_allclose(np.asarray(found)[mask > 0].mean(), 1.0, rtol=1e-5)


def test_tail_aware_weights_of_one_return_in_the_tail_and_of_none():
    mask = jnp.ones((1, 30))
    returns = jnp.zeros((1, 30)).at[0, 4].set(100.0)
    found = ops.tail_aware_weights(returns, 50.0 * mask, mask, temperature=1.0)
    want = np.full((1, 30), 0.1)
    want[0, 4] = 10.0
    np.testing.assert_allclose(found, want, rtol=1e-6)
    none = ops.tail_aware_weights(-1e6 * mask, mask, mask)
    np.testing.assert_allclose(none, np.full((1, 30), 0.1), rtol=1e-6)
    np.testing.assert_array_equal(ops.tail_aware_weights(returns, mask, 0 * mask), 0 * mask)


def test_tail_aware_weights_carry_no_gradient():
    x = jnp.asarray(quantiles(0, 4, 5))
    slope = jax.grad(lambda r, q: ops.tail_aware_weights(r, q, jnp.ones((4, 5))).sum(), (0, 1))
    for gradient in slope(x, 0.5 * x):
        np.testing.assert_array_equal(gradient, np.zeros((4, 5)))


def test_bad_options_of_the_tail_are_named():
    x = jnp.ones((1, 3))
    for options, said in (
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"tail": 0.0}, "tail is 0.0; allowed: above 0 and at most 1"),
        ({"side": "both"}, "side is 'both'; allowed: upper, lower"),
    ):
        with pytest.raises(ValueError, match=said):
            ops.tail_aware_weights(x, x, x, **options)
    with pytest.raises(AssertionError):
        ops.tail_aware_weights(x, x[:, :2], x)


def test_bad_options():
    q = jnp.arange(4.0)
    for level in (0.0, -0.1, 1.5):
        with pytest.raises(ValueError, match=f"alpha is {level}; allowed: above 0 and at most 1"):
            ops.cvar(q, level)
        with pytest.raises(ValueError, match=f"beta is {level}"):
            ops.tail_shape_penalty(q, q, 0.5, level)
        with pytest.raises(ValueError, match=f"beta is {level}"):
            ops.upper_gain_penalty(q, q, level)
    with pytest.raises(ValueError, match="measure is 'median'; allowed: mean, cvar"):
        ops.risk_value(q, measure="median")
    with pytest.raises(ValueError, match="eta is 1.5"):
        ops.risk_value(q, measure="mean_cvar", eta=1.5)
    with pytest.raises(ValueError, match="the number of quantiles of q is 2; allowed: at least 3"):
        ops.tail_curvature_penalty(q[:2], 0.5, 0.5)
    with pytest.raises(ValueError, match=r"radius is 1.5; allowed: a number in \[0, 1\]"):
        ops.robust_value(q, radius=1.5, lowest=0.0)
    with pytest.raises(ValueError, match="emphasis is 'middle'; allowed: lower, upper, mean_upper"):
        ops.risk_weights(q, emphasis="middle")
    with pytest.raises(ValueError, match="rate is 0.0; allowed: a positive number"):
        ops.risk_weights(q, rate=0.0)
    with pytest.raises(AssertionError):
        ops.cvar_penalty(jnp.ones((2, 3)), jnp.ones((3, 3)), 0.5)
