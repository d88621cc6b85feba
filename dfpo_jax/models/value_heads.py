"""Value heads other than the value flow: scalar, quantile, ensemble, implicit quantile."""

from collections.abc import Callable

import chex
import flax.linen as nn
import jax.numpy as jnp

from dfpo_jax.types import Array


class ScalarHead(nn.Module):
    """A linear value V(s) of the features, 0 at initialisation; float32."""

    def setup(self):
        """Names the layer."""
        self.output = _linear(1)

    def __call__(self, features: Array) -> Array:
        """[..., D] -> [...]."""
        return self.output(features.astype(jnp.float32))[..., 0]


class QuantileHead(nn.Module):
    """M linear quantiles of Z(s), 0 at initialisation; float32.

    The outputs belong to the levels `ops.quantile_levels(M)`. They are not sorted: training with
    `ops.quantile_huber` orders them, and statistics that need order sort them first.

    Attributes:
      num_quantiles: M.
    """

    num_quantiles: int

    def setup(self):
        """Names the layer."""
        if self.num_quantiles < 1:
            raise ValueError(f"num_quantiles is {self.num_quantiles}; it must be at least 1")
        self.output = _linear(self.num_quantiles)

    def __call__(self, features: Array) -> Array:
        """[..., D] -> [..., M]."""
        chex.assert_rank(features, set(range(1, 10)))
        return self.output(features.astype(jnp.float32))


class EnsembleHead(nn.Module):
    """N linear heads of M outputs each; float32.

    Their first values differ: heads that start equal and learn from the same tokens stay equal.

    Attributes:
      num_heads: N.
      num_outputs: M of each head.
      scale: deviation of the first outputs where features have a mean square of 1.
    """

    num_heads: int
    num_outputs: int = 1
    scale: float = 0.01

    def setup(self):
        """Names the layer."""
        init = nn.initializers.variance_scaling(self.scale**2, "fan_in", "normal")
        self.output = _linear(self.num_heads * self.num_outputs, init)

    def __call__(self, features: Array) -> Array:
        """[..., D] -> [..., N, M]."""
        found = self.output(features.astype(jnp.float32))
        return found.reshape(*found.shape[:-1], self.num_heads, self.num_outputs)


class ImplicitQuantileHead(nn.Module):
    """Quantiles of Z(s) at any levels, 0 at initialisation; float32.

    The features, projected to H units, are multiplied by an embedding of the level,
    `relu(W cos(pi k tau) + b)`, k = 0 .. C - 1, and the product is read linearly. Implicit quantile
    networks, Dabney et al. 2018, arXiv 1806.06923, eq. 4; there the product has the width of the
    features. The projection is ours: H values per token and level must exist at once.

    Attributes:
      hidden: H.
      num_cosines: C.
    """

    hidden: int = 64
    num_cosines: int = 64

    def setup(self):
        """Names the layers."""
        init = nn.initializers.lecun_normal()
        self.features = _linear(self.hidden, init)
        self.levels = _linear(self.hidden, init, axes=(None, None))
        self.output = _linear(1, axes=(None, None))

    def __call__(self, features: Array, levels: Array) -> Array:
        """Quantiles at levels.

        Args:
          features: [..., D].
          levels: [F] for all features, or [..., F], those of each.

        Returns:
          [..., F].
        """
        x = self.features(features.astype(jnp.float32))[..., None, :]
        waves = jnp.arange(self.num_cosines, dtype=jnp.float32)
        waves = waves.reshape((1,) * levels.ndim + (-1,))
        # Rows of one matrix: CPU gradients of products with several leading axes are slow.
        inputs = jnp.cos(jnp.pi * waves * levels[..., None]).reshape(-1, self.num_cosines)
        embedded = nn.relu(self.levels(inputs))
        embedded = embedded.reshape((1,) * (x.ndim - 1 - levels.ndim) + (*levels.shape, -1))
        product = x * embedded
        return self.output(product.reshape(-1, self.hidden)).reshape(product.shape[:-1])


def _linear(width: int, init: Callable | None = None, axes: tuple = ("embed", None)) -> nn.Dense:
    """A dense layer that starts at 0, or as `init` says, with logical axis names."""
    init = nn.initializers.zeros_init() if init is None else init
    return nn.Dense(
        width,
        kernel_init=nn.with_logical_partitioning(init, axes),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), (None,)),
    )
