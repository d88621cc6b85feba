"""Log-probabilities and entropies of tokens from hidden states; never all logits at once."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from dfpo_jax.sharding import batch_devices, mesh_size
from dfpo_jax.types import Array

_MOST_LOGITS = 2**27  # per device, if no number of time steps is given: half a GiB
_LOGITS = ("batch", "length", "vocab")
_KERNEL = ("vocab", None)


def token_statistics(
    hidden: Array, kernel: Array, tokens: Array, temperature: float, chunk: int = 0
) -> tuple[Array, Array]:
    """Log-probabilities and entropies, both [B, T] float32, of tokens given the states before them.

        l = kernel hidden_i / temperature    log p(y_i) = l[y_i] - log sum_v exp l_v
        H = -sum_v p_v log p_v

    If one piece holds all logits, they are kept for the gradient. Otherwise the gradient computes
    them again, piece by piece: `dl_v = g (1[v = y_i] - p_v) - h p_v (log p_v + H)` for cotangents
    g and h. The kernel's gradient is summed in float32. Source: ours.

    Args:
      hidden: [B, T, D] in the compute type, which is also the type of the products.
      kernel: [V, D] in the parameters' type.
      tokens: [B, T] integers; an id of V or more gives NaN.
      temperature: divides the logits; above 0.
      chunk: the number of time steps whose logits exist at once; 0 for as many as take half a GiB
        per device. It changes results only by rounding.
    """
    chex.assert_rank([hidden, kernel, tokens], [3, 2, 2])
    chex.assert_equal_shape_prefix([hidden, tokens], 2)
    batch, length = tokens.shape
    if chunk == 0:
        row = batch * kernel.shape[0] / (batch_devices() * mesh_size("tensor"))
        chunk = max(int(_MOST_LOGITS / row), 1)
    pieces = -(-length // chunk)
    chunk = -(-length // pieces)

    def split(x):
        x = jnp.pad(x, ((0, 0), (0, pieces * chunk - length)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(batch, pieces, chunk, *x.shape[2:]), 1, 0)

    found = _statistics(split(hidden), kernel, split(tokens), temperature)
    return tuple(jnp.moveaxis(x, 0, 1).reshape(batch, -1)[:, :length] for x in found)


def other_log_probs(
    hidden: Array,
    kernel: Array,
    tokens: Array,
    log_probs: Array,
    others: Array,
    temperature: float,
) -> Array:
    """Log-probabilities [B, T, K] float32 of K other tokens, from those of `tokens`.

        log p(k) = l[k] - l[y] + log p(y)

    so that no sum over the vocabulary is taken again. Kernel rows of one time step at once exist.

    Args:
      hidden, kernel, tokens, temperature: as of `token_statistics`.
      log_probs: [B, T] of `tokens`.
      others: [B, T, K] integers.
    """
    chex.assert_rank([hidden, kernel, tokens, others], [3, 2, 2, 3])
    chex.assert_equal_shape_prefix([hidden, tokens, others], 2)

    def one(step):
        states, token, log_prob, other = step
        rows = kernel[jnp.concatenate([other, token[:, None]], axis=1)].astype(states.dtype)
        logits = jnp.einsum("bkd,bd->bk", rows, states, preferred_element_type=jnp.float32)
        logits = logits / temperature
        return logits[:, :-1] - logits[:, -1:] + log_prob[:, None]

    steps = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (hidden, tokens, log_probs, others))
    return jnp.swapaxes(jax.lax.map(one, steps), 0, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _statistics(hidden, kernel, tokens, temperature):
    """Statistics of P pieces of the time: [P, B, C, D], [V, D], [P, B, C] -> two of [P, B, C]."""
    return _forward(hidden, kernel, tokens, temperature)[0]


def _forward(hidden, kernel, tokens, temperature):
    gathered = _gathered(kernel, hidden.dtype)

    def one(piece):
        logits = _logits(piece[0], gathered, temperature)
        top = jnp.max(logits, axis=-1)
        shifted = logits - top[..., None]
        weights = jnp.exp(shifted)
        total = jnp.sum(weights, axis=-1)
        chosen = jnp.take_along_axis(shifted, piece[1][..., None], axis=-1)[..., 0]
        entropy = jnp.log(total) - jnp.einsum("bcv,bcv->bc", weights, shifted) / total
        log_prob = chosen - jnp.log(total)
        kept = logits if len(hidden) == 1 else None
        return (log_prob, entropy), (entropy, top + jnp.log(total), kept)

    out, kept = jax.lax.map(one, (hidden, tokens))
    return out, (kernel, (hidden, tokens, *kept))


def _backward(temperature, residuals, cotangents):
    kernel, kept = residuals
    hidden, tokens = kept[:2]
    dtype = hidden.dtype
    gathered = _gathered(kernel, dtype)
    words = jnp.arange(kernel.shape[0])[None, None]

    def one(total, piece):
        (states, token, entropy, log_total, logits), (of_log_prob, of_entropy) = piece
        logits = _logits(states, gathered, temperature) if logits is None else logits
        log_p = logits - log_total[..., None]
        p = jnp.exp(log_p)
        chosen = jnp.where(token[..., None] == words, of_log_prob[..., None], 0.0)
        other = of_log_prob[..., None] + of_entropy[..., None] * (log_p + entropy[..., None])
        change = ((chosen - p * other) / temperature).astype(dtype)
        change = nn.with_logical_constraint(change, _LOGITS).reshape(-1, kernel.shape[0])
        rows = states.reshape(len(change), -1)
        of_kernel = jnp.einsum("nv,nd->vd", change, rows, preferred_element_type=jnp.float32)
        return total + of_kernel, (change @ gathered).reshape(states.shape)

    inputs = (kept, cotangents)
    if len(tokens) == 1:  # a scan would allocate zeros of the kernel's size
        of_kernel, of_hidden = one(0.0, jax.tree.map(lambda x: x[0], inputs))
        of_hidden = of_hidden[None]
    else:
        zeros = jnp.zeros(kernel.shape, jnp.float32)
        of_kernel, of_hidden = jax.lax.scan(one, zeros, inputs)
    return of_hidden, of_kernel.astype(kernel.dtype), None


_statistics.defvjp(_forward, _backward)


def _gathered(kernel: Array, dtype) -> Array:
    """Converts the kernel and gathers it over the data axes, once for all pieces."""
    return nn.with_logical_constraint(kernel.astype(dtype), _KERNEL)


def _logits(hidden: Array, kernel: Array, temperature: float) -> Array:
    """[B, C, D] -> [B, C, V] float32."""
    rows = hidden.reshape(-1, hidden.shape[-1])
    out = jnp.matmul(rows, kernel.T, preferred_element_type=jnp.float32) / temperature
    return nn.with_logical_constraint(out.reshape(*hidden.shape[:2], -1), _LOGITS)
