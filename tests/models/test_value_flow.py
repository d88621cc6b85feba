"""The velocity network: its values, shapes, initialisation and sizes."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfpo_jax.models.value_flow import ValueFlow, ValueFlowConfig

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
