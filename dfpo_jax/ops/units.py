"""Units in which a critic can learn returns of several scales at once; ours.

A quantile of h(G) is h of that quantile of G for every increasing h, so the quantiles of a return
can be learned in units z = h(x) and read in x without bias. Means cannot. With h = asinh, z is
linear where |x| is well below 1 and grows like a logarithm where it is well above.
"""

import jax.numpy as jnp

from dfpo_jax.ops.masking import as_float
from dfpo_jax.types import Array

LARGEST_ASINH = 32.0
"""Largest |z|: x = sinh(32) = 3.9e13, so that sums of squares of x over a batch stay finite in
float32."""


def asinh_units(x: Array) -> Array:
    """z = asinh(x), within +-LARGEST_ASINH: -> float32 or wider, of the same shape."""
    return jnp.clip(jnp.arcsinh(as_float(x)), -LARGEST_ASINH, LARGEST_ASINH)


def from_asinh_units(z: Array) -> Array:
    """x = sinh(z), the inverse of `asinh_units`, with z first clipped to +-LARGEST_ASINH.

    A network may return any z; without the clip, sinh(89) overflows float32.
    """
    return jnp.sinh(jnp.clip(as_float(z), -LARGEST_ASINH, LARGEST_ASINH))


def mean_from_asinh_units(low: Array, width: Array | float) -> Array:
    """Mean of sinh(z) over z spread evenly from `low` to `low + width`.

    It is sinh(m) sinh(u) / u with m the middle and u = width / 2, without the cancellation of
    (cosh(low + width) - cosh(low)) / width.

    Args:
      low: [...].
      width: of the same shape or a number, at least 0; at 0 the mean is sinh(low).

    Returns:
      [...] float32 or wider.
    """
    half = 0.5 * jnp.asarray(width, jnp.float32)
    inside = jnp.where(half > 0.0, half, 1.0)
    spread = jnp.where(half > 0.0, jnp.sinh(inside) / inside, 1.0)
    return from_asinh_units(low + half) * spread
