"""Rotary position embedding, with the frequency scalings of the supported families."""

import math

import chex
import jax.numpy as jnp
import numpy as np

from dfpo_jax.models.config import TransformerConfig
from dfpo_jax.types import Array


def rope_frequencies(config: TransformerConfig) -> tuple[np.ndarray, float]:
    """Angle per position of each of the H / 2 pairs (float32), and the factor of cosines and sines.

    With f_i = theta ** (-2 i / H):

    - "default": f.
    - "linear": f / factor.
    - "llama3": f where the original context holds more than `high_freq_factor` turns, f / factor
      where it holds fewer than `low_freq_factor`, and in between a mean of both that is linear in
      the number of turns.
    - "yarn": f where the original context holds more than `beta_fast` turns, f / factor below
      `beta_slow` turns, and in between a mean of both that is linear in i; cosines and sines are
      multiplied by `rope_attention_factor`.

    Source: Su et al. 2021 (RoFormer), section 3.4.2; Chen et al. 2023 (position interpolation),
    equation 4; Llama 3.1's published code; Peng et al. 2023 (YaRN), sections 3.2 and 3.4.
    """
    c = config
    plain = c.rope_theta ** (-np.arange(0, c.head_dim, 2, dtype=np.float64) / c.head_dim)
    attention_factor = 1.0
    if c.rope_type == "default":
        kept = np.ones_like(plain)
    elif c.rope_type == "linear":
        kept = np.zeros_like(plain)
    elif c.rope_type == "llama3":
        turns = c.rope_original_max_positions * plain / (2 * math.pi)
        width = c.rope_high_freq_factor - c.rope_low_freq_factor
        kept = np.clip((turns - c.rope_low_freq_factor) / width, 0.0, 1.0)
    else:
        kept = 1.0 - _yarn_ramp(c)
        attention_factor = c.rope_attention_factor
    frequencies = plain * kept + plain / c.rope_factor * (1.0 - kept)
    return frequencies.astype(np.float32), attention_factor


def _yarn_ramp(c: TransformerConfig) -> np.ndarray:
    """[H / 2]: 0 for pairs that turn fast, 1 for those that turn slowly, linear in between."""

    def pair(turns):
        """The (fractional) pair that makes this many turns over the original context."""
        length = c.rope_original_max_positions / (turns * 2 * math.pi)
        return c.head_dim * math.log(length) / (2 * math.log(c.rope_theta))

    low, high = pair(c.rope_beta_fast), pair(c.rope_beta_slow)
    if c.rope_truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, c.head_dim - 1)
    high = high + 0.001 if low == high else high  # avoids 0 / 0 as the published code does
    return np.clip((np.arange(c.head_dim // 2) - low) / (high - low), 0.0, 1.0)


def rope_tables(positions: Array, config: TransformerConfig) -> tuple[Array, Array]:
    """Cosines and sines [B, T, 1, H / 2] (float32) of position times frequency, for `apply_rope`.

    Args:
      positions: [B, T] integers.
      config: gives the frequencies, see `rope_frequencies`.
    """
    chex.assert_rank(positions, 2)
    frequencies, factor = rope_frequencies(config)
    angle = positions.astype(jnp.float32)[:, :, None, None] * frequencies.reshape(1, 1, 1, -1)
    return jnp.cos(angle) * factor, jnp.sin(angle) * factor


def apply_rope(x: Array, cos: Array, sin: Array) -> Array:
    """Rotates the pairs (i, i + H / 2) of x [B, T, N, H]; float32 inside, the type of x outside."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)
