"""The output projection written as one product, which the library never forms whole."""

import flax.linen as nn
import jax.numpy as jnp


def plain_logits(params, hidden):
    """Logits [B, T, V] of hidden states [B, T, D]: the head if there is one, else the embedding."""
    params = nn.unbox(params)
    kernel = params["head"] if "head" in params else params["embedding"].T
    return jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)
