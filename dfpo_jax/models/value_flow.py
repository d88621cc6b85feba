"""The value flow's network: a scalar velocity field per token; `critics.flow_inference` reads it.

The field v(z, t, d | c) transports noise z ~ N(0, 1) at t = 0 to the return Z(s) at t = 1 along
dz/dt = v(z, t, 0 | c); v(z, 0, 1 | c) is the jump over the whole horizon (the flow map). Values are
in normalised units (zero centre, scale 1).

A *velocity* below is a function (z, t, d) -> dz/dt with a condition already bound:

    cond = model.apply(params, features, method="condition")
    velocity = lambda z, t, d: model.apply(params, cond, z, t, d, method="velocity")
"""

import dataclasses
from collections.abc import Callable

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from dfpo_jax.types import Array

Velocity = Callable[[Array, Array, Array], Array]


@dataclasses.dataclass(frozen=True)
class ValueFlowConfig:
    """Sizes of the value flow head.

    Attributes:
      hidden: width of the field's layers, which run for every (token, sample, solver stage).
      num_blocks: hidden layers of the field after its input layer.
      condition_dim: width of the layer between a token's features and its condition, which runs
        once per token.
      time_features: number F of features cos(k pi t), k = 1..F.

    Raises:
      ValueError: a field is out of range; the message names field, value and what is allowed.
    """

    hidden: int = 64
    num_blocks: int = 2
    condition_dim: int = 64
    time_features: int = 8

    def __post_init__(self):
        """Validates every field."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{field.name} is {value!r}; it must be an integer of at least 1")


class ValueFlow(nn.Module):
    """Velocity field v(z, t, d | c) of a scalar z, in float32; 0 everywhere at initialisation.

    `condition` turns a token's features into one additive term for each layer of the field, so that
    the many evaluations of `velocity` cost `num_blocks` products of width `hidden` each and nothing
    that depends on the width of the backbone. The architecture is ours.
    """

    config: ValueFlowConfig = ValueFlowConfig()

    def setup(self):
        """Names the layers."""
        c = self.config
        self.trunk = _dense(c.condition_dim, ("embed", None))
        self.conditions = _dense((c.num_blocks + 1) * c.hidden, (None, None))
        self.inputs = _dense(c.hidden, (None, None), bias=False, init=nn.initializers.normal(1.0))
        self.blocks = [_dense(c.hidden, (None, None), bias=False) for _ in range(c.num_blocks)]
        self.output = _dense(1, (None, None), init=nn.initializers.zeros_init())

    def condition(self, features: Array) -> Array:
        """[..., D] -> [..., C], C = (num_blocks + 1) * hidden; call it once per token."""
        return self.conditions(jax.nn.silu(self.trunk(features.astype(jnp.float32))))

    def velocity(self, cond: Array, z: Array, t: Array, d: Array) -> Array:
        """The field at the points z.

        Args:
          cond: [..., C], from `condition`.
          z: [..., S] points, S per token; leading axes are those of `cond`.
          t: virtual time in [0, 1], scalar or of the shape of z (scalar is cheaper).
          d: step length in [0, 1], likewise: 0 for the instantaneous field, 1 for the flow map.

        Returns:
          [..., S] velocities.
        """
        c = self.config
        chex.assert_equal(cond.shape[:-1], z.shape[:-1])
        chex.assert_axis_dimension(cond, -1, (c.num_blocks + 1) * c.hidden)
        t, d, z = (jnp.asarray(x, jnp.float32) for x in (t, d, z))
        for x in (t, d):
            if x.ndim:
                chex.assert_equal_shape([x, z])
        # Rows of one matrix, and all inputs in one product: CPU gradients of products with several
        # leading axes, or of separate outer products, take several times as long.
        # z * d: the flow map has another slope in z than the instantaneous field.
        inputs = [z, z * d, d, *self._time_features(t)]
        inputs = jnp.stack([jnp.broadcast_to(x, z.shape) for x in inputs], axis=-1)
        inputs = inputs.reshape(z.size, 3 + c.time_features)
        cond = cond.reshape(*cond.shape[:-1], 1, c.num_blocks + 1, c.hidden)
        wide = (*z.shape, c.hidden)
        first, *rest = (
            jnp.broadcast_to(cond[..., i, :], wide).reshape(z.size, c.hidden)
            for i in range(c.num_blocks + 1)
        )
        x = jax.nn.silu(self.inputs(inputs) + first)
        for block, term in zip(self.blocks, rest, strict=True):
            x = x + jax.nn.silu(block(x) + term)
        return self.output(x).reshape(z.shape)

    def __call__(self, features: Array, z: Array, t: Array, d: Array) -> Array:
        """`velocity` at the condition of `features`; initialises every parameter."""
        return self.velocity(self.condition(features), z, t, d)

    def _time_features(self, t: Array) -> list[Array]:
        """cos(k pi t), k = 1..F, from one cosine by the recurrence of Chebyshev polynomials."""
        features = [jnp.ones_like(t), jnp.cos(jnp.pi * t)]
        while len(features) <= self.config.time_features:
            features.append(2 * features[1] * features[-1] - features[-2])
        return features[1:]


def _dense(width, axes, *, bias=True, init=None) -> nn.Dense:
    """A float32 dense layer with logical axis names."""
    return nn.Dense(
        width,
        use_bias=bias,
        kernel_init=nn.with_logical_partitioning(init or nn.initializers.lecun_normal(), axes),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), axes[-1:]),
    )
