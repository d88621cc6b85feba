"""asinh units against numpy in float64: inverse, means over intervals, and sizes beyond float32."""

import jax.numpy as jnp
import numpy as np

from dfpo_jax import ops

X = np.array([0.0, 1e-6, -0.3, 1.0, 40.0, -1e4, 1e9, -3e12], np.float32)


def test_they_equal_asinh_and_its_inverse(variant):
    z = variant(ops.asinh_units)(X)
    np.testing.assert_allclose(z, np.arcsinh(X.astype(float)), rtol=1e-6)
    np.testing.assert_allclose(variant(ops.from_asinh_units)(z), X, rtol=1e-5)
    assert np.all(np.diff(ops.asinh_units(jnp.sort(X))) > 0)


def test_nothing_overflows(variant):
    far = np.array([89.0, 1e30, np.inf], np.float32)
    x = np.asarray(variant(ops.from_asinh_units)(np.concatenate([far, -far])))
    np.testing.assert_allclose(x[:3], np.sinh(ops.LARGEST_ASINH), rtol=1e-5)
    np.testing.assert_array_equal(x[3:], -x[:3])
    assert np.isfinite(np.float32(1e6) * x[0] ** 2)  # a sum of squares over a batch
    np.testing.assert_array_equal(variant(ops.asinh_units)(far[1:]), [ops.LARGEST_ASINH] * 2)


def test_means_over_intervals_equal_an_integral(variant):
    low = np.array([-3.0, -0.01, 0.0, 2.0, 4.0], np.float32)
    width = np.array([0.5, 0.02, 1e-4, 0.0, 0.04], np.float32)
    points = (np.arange(2000) + 0.5) / 2000
    expected = np.sinh(low[:, None] + width[:, None] * points.astype(float)).mean(axis=-1)
    found = variant(ops.mean_from_asinh_units)(low, width)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(ops.mean_from_asinh_units(low, 0.0), np.sinh(low), rtol=1e-6)
