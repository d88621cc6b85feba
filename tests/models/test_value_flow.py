import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import norm

from dfpo_jax.models.value_flow import (
    ValueFlow,
    ValueFlowConfig,
    mean,
    noise_grid,
    one_step,
    quantiles,
    samples,
)
from dfpo_jax.ops.flow_matching import anchor_loss, stratified_times

CONFIG = ValueFlowConfig(hidden=16, num_blocks=2, condition_dim=12, time_features=4)
FLOW = ValueFlow(CONFIG)
B, T, S, D = 2, 3, 4, 6
RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(B, T, D)).astype(np.float32)
Z = RNG.normal(size=(B, T, S)).astype(np.float32)
TIME = RNG.uniform(size=(B, T, S)).astype(np.float32)
STEP = RNG.uniform(size=(B, T, S)).astype(np.float32)


@pytest.fixture(scope="module")
def initial():
    return nn.unbox(jax.jit(FLOW.init)(jax.random.key(0), FEATURES, Z, TIME, STEP))


@pytest.fixture(scope="module")
def params(initial):
    """Parameters away from the initial zeros."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda x: x + jnp.asarray(0.3 * rng.normal(size=x.shape), jnp.float32), initial
    )


def condition(params, features):
    return FLOW.apply(params, features, method="condition")


def velocity(params, cond, z, t, d):
    return FLOW.apply(params, cond, z, t, d, method="velocity")


def silu(x):
    return x / (1 + np.exp(-x))


def reference(params, features, z, t, d):
    """The field of one point, in plain numpy and double precision."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)["params"]
    trunk = silu(features @ p["trunk"]["kernel"] + p["trunk"]["bias"])
    cond = trunk @ p["conditions"]["kernel"] + p["conditions"]["bias"]
    cond = cond.reshape(CONFIG.num_blocks + 1, CONFIG.hidden)
    waves = [np.cos(k * np.pi * t) for k in range(1, CONFIG.time_features + 1)]
    x = silu(np.array([z, z * d, d, *waves]) @ p["inputs"]["kernel"] + cond[0])
    for i in range(CONFIG.num_blocks):
        x = x + silu(x @ p[f"blocks_{i}"]["kernel"] + cond[i + 1])
    return (x @ p["output"]["kernel"] + p["output"]["bias"])[0]


def test_equals_the_field_computed_point_by_point(variant, params):
    cond = variant(condition)(params, FEATURES)
    assert cond.shape == (B, T, (CONFIG.num_blocks + 1) * CONFIG.hidden)
    out = variant(velocity)(params, cond, Z, TIME, STEP)
    expected = np.zeros((B, T, S))
    for b, i, s in np.ndindex(B, T, S):
        expected[b, i, s] = reference(
            params, FEATURES[b, i], Z[b, i, s], TIME[b, i, s], STEP[b, i, s]
        )
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(out, variant(FLOW.apply)(params, FEATURES, Z, TIME, STEP))


def test_scalar_times_equal_full_ones(variant, params):
    cond = condition(params, FEATURES)
    full = velocity(params, cond, Z, np.full_like(Z, 0.3), np.full_like(Z, 1.0))
    for t, d in ((0.3, 1.0), (jnp.float32(0.3), np.full_like(Z, 1.0))):
        out = variant(velocity)(params, cond, Z, t, d)
        np.testing.assert_allclose(out, full, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lead", [(), (5,), (2, 3, 2)])
def test_any_leading_axes(params, lead):
    rng = np.random.default_rng(3)
    features = rng.normal(size=(*lead, D)).astype(np.float32)
    z = rng.normal(size=(*lead, S)).astype(np.float32)
    apply = jax.jit(FLOW.apply)
    out = apply(params, features, z, 0.5, 0.0)
    assert out.shape == z.shape and out.dtype == jnp.float32
    flat = apply(params, features.reshape(-1, D), z.reshape(-1, S), 0.5, 0.0)
    np.testing.assert_allclose(np.asarray(out).reshape(-1, S), flat, rtol=1e-5, atol=1e-6)


def test_wrong_shapes(params):
    cond = condition(params, FEATURES)
    for bad in (
        (cond[:, :2], Z, 0.0, 0.0),
        (cond[..., 1:], Z, 0.0, 0.0),
        (cond, Z, TIME[..., 0], 0.0),
        (cond, Z, TIME, STEP[..., :1]),
    ):
        with pytest.raises(AssertionError):
            velocity(params, *bad)


def test_starts_at_zero_and_every_parameter_learns(initial, params):
    assert np.all(np.asarray(FLOW.apply(initial, FEATURES, Z, TIME, STEP)) == 0)

    def loss(params):
        return jnp.mean((FLOW.apply(params, FEATURES, Z, TIME, STEP) - 1.0) ** 2)

    gradient = jax.jit(jax.grad(loss))
    first = gradient(initial)["params"]
    assert np.all(np.abs(first["output"]["kernel"]) > 0)
    for path, g in jax.tree_util.tree_leaves_with_path(gradient(params)):
        assert np.all(np.abs(g) > 0), jax.tree_util.keystr(path)


def test_computes_in_float32_whatever_the_features(params):
    cond = condition(params, jnp.asarray(FEATURES, jnp.bfloat16))
    assert cond.dtype == jnp.float32
    assert velocity(params, cond, jnp.asarray(Z, jnp.bfloat16), 0.0, 0.0).dtype == jnp.float32


@pytest.mark.parametrize("field", ["hidden", "num_blocks", "condition_dim", "time_features"])
@pytest.mark.parametrize("value", [0, 2.0, True])
def test_a_bad_size_is_named(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value!r}; .*at least 1"):
        dataclasses.replace(CONFIG, **{field: value})


def test_one_time_feature_is_enough():
    flow = ValueFlow(ValueFlowConfig(hidden=4, num_blocks=1, condition_dim=4, time_features=1))
    params = jax.eval_shape(flow.init, jax.random.key(0), FEATURES, Z, TIME, STEP)
    assert nn.unbox(params)["params"]["inputs"]["kernel"].shape == (4, 4)


# What is read from a velocity, on fields with known answers

MU, SIGMA = 0.7, 0.4


def gaussian(z, t, d):
    """Field that carries N(0, 1) to N(MU, SIGMA^2); d = 1: its flow map.

    With z_t = (1 - t) eps + t y and eps, y independent, E[y - eps | z_t] is linear in z_t.
    """
    variance = (1 - t) ** 2 + (t * SIGMA) ** 2
    field = MU + (t * SIGMA**2 - (1 - t)) / variance * (z - t * MU)
    return (1 - d) * field + d * (MU + (SIGMA - 1) * z)


def test_noise_grid_holds_normal_quantiles():
    grid = noise_grid((2, 3), 5)
    expected = np.broadcast_to(norm.ppf((np.arange(5) + 0.5) / 5), (2, 3, 5))
    np.testing.assert_allclose(grid, expected, atol=1e-6)


def test_samples_follow_the_field(variant):
    noise = noise_grid((2, 3), 7)
    out = variant(lambda noise: samples(gaussian, noise, num_steps=20, solver="rk4"))(noise)
    np.testing.assert_allclose(out, MU + SIGMA * noise, atol=1e-4)


def test_quantiles_are_those_of_the_distribution(variant):
    out = variant(lambda: quantiles(gaussian, (2, 3), 9, num_steps=20, solver="rk4"))()
    expected = norm.ppf((np.arange(9) + 0.5) / 9, loc=MU, scale=SIGMA)
    np.testing.assert_allclose(out, np.broadcast_to(expected, (2, 3, 9)), atol=1e-4)


def test_quantiles_are_sorted_even_where_steps_cross():
    def steep(z, t, d):
        return -3.0 * z

    crossed = samples(steep, noise_grid((2,), 5), num_steps=1, solver="euler")
    assert np.all(np.diff(crossed, axis=-1) < 0)
    out = quantiles(steep, (2,), 5, num_steps=1, solver="euler")
    np.testing.assert_allclose(out, np.sort(crossed, axis=-1))


def test_one_step_is_the_flow_map_while_one_euler_step_has_no_spread(variant):
    noise = noise_grid((2, 3), 7)
    np.testing.assert_allclose(
        variant(lambda noise: one_step(gaussian, noise))(noise), MU + SIGMA * noise, atol=1e-5
    )
    collapsed = samples(gaussian, noise, num_steps=1, solver="euler")
    np.testing.assert_allclose(collapsed, np.full(noise.shape, MU), atol=1e-5)


def test_mean_needs_no_integration(variant):
    out = variant(lambda noise: mean(gaussian, noise))(noise_grid((2, 3), 8))
    np.testing.assert_allclose(out, np.full((2, 3), MU), atol=1e-6)


def test_readings_evaluate_the_instantaneous_field_or_the_map():
    seen = []

    def spy(z, t, d):
        seen.append((np.unique(t).tolist(), np.unique(d).tolist()))
        return jnp.zeros_like(z)

    noise = noise_grid((1,), 3)
    one_step(spy, noise)
    mean(spy, noise)
    assert seen == [([0.0], [1.0]), ([0.0], [0.0])]


def test_learns_two_distributions_by_the_anchor_loss():
    """Two states, N(-0.8, 0.1^2) and N(0.6, 0.5^2), from samples, in a few hundred updates."""
    centre, spread = np.array([[-0.8], [0.6]]), np.array([[0.1], [0.5]])
    features = np.eye(2, D, dtype=np.float32)[:, None]
    flow = ValueFlow(ValueFlowConfig(hidden=32, num_blocks=1, condition_dim=16, time_features=4))
    start = jax.jit(flow.init)(jax.random.key(0), features, jnp.zeros((2, 1, 1)), 0.0, 0.0)
    params = nn.unbox(start)

    def bind(params):
        cond = flow.apply(params, features, method="condition")
        return lambda z, t, d: flow.apply(params, cond, z, t, d, method="velocity")

    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, 400))

    def update(carry, key):
        params, state = carry
        keys = jax.random.split(key, 3)
        y = jax.random.normal(keys[0], (2, 1, 128)) * spread[..., None] + centre[..., None]
        noise, times = jax.random.normal(keys[1], y.shape), stratified_times(keys[2], y.shape)
        grads = jax.grad(lambda p: jnp.mean(anchor_loss(bind(p), y, noise, times)))(params)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.jit(lambda c, k: jax.lax.scan(update, c, k))(
        (params, optimizer.init(params)), jax.random.split(jax.random.key(1), 400)
    )
    found = quantiles(bind(params), (2, 1), 16, num_steps=8)[:, 0]
    expected = norm.ppf((np.arange(16) + 0.5) / 16) * spread + centre
    # Over six seeds the errors were at most 0.013 and 0.048; untrained they are about 0.8.
    assert np.abs(found - expected).mean() < 0.03
    np.testing.assert_allclose(
        mean(bind(params), noise_grid((2, 1), 16))[:, 0], centre[:, 0], atol=0.1
    )
