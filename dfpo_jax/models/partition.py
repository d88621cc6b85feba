"""FlowRL's partition network: log Z of a prompt, from the policy's hidden states."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from dfpo_jax.types import Array

_EPSILON = 1e-5  # of the layer norms of the official code


class Partition(nn.Module):
    """log Z(x) of the mean hidden state of a prompt; 0 at initialisation; float32.

    Two layers [Linear(D, D), GELU, LayerNorm] and Linear(D, 1), as in the official code of FlowRL
    (arXiv 2509.15207). Its dropout of 0.1 is left out, as a loss here depends on its row alone; the
    start at 0 is ours.
    """

    @nn.compact
    def __call__(self, hidden: Array, valid: Array) -> Array:
        """[B, P, D] hidden states and [B, P], 1 on tokens of the prompt -> [B]."""
        chex.assert_equal_shape_prefix([hidden, valid], 2)
        there = jnp.asarray(valid).astype(bool)
        states = jnp.where(there[..., None], hidden.astype(jnp.float32), 0)
        count = jnp.maximum(jnp.sum(there, axis=1, dtype=jnp.float32), 1)
        x, width = jnp.sum(states, axis=1) / count[:, None], hidden.shape[-1]
        for _ in range(2):
            x = jax.nn.gelu(_dense(width, nn.initializers.lecun_normal())(x), approximate=False)
            x = nn.LayerNorm(
                epsilon=_EPSILON,
                scale_init=nn.with_logical_partitioning(nn.initializers.ones_init(), (None,)),
                bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), (None,)),
            )(x)
        return _dense(1, nn.initializers.zeros_init())(x)[:, 0]


def _dense(width: int, init: nn.initializers.Initializer) -> nn.Dense:
    return nn.Dense(
        width,
        kernel_init=nn.with_logical_partitioning(init, ("embed", None)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), (None,)),
    )
