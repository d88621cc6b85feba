"""Scalar and quantile value heads: the baselines of the value flow."""

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


def _linear(width: int) -> nn.Dense:
    """A dense layer that starts at 0."""
    return nn.Dense(
        width,
        kernel_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), ("embed", None)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), (None,)),
    )
