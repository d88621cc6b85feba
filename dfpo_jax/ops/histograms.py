"""Distributions as probabilities of bins or of atoms: the targets of categorical critics."""

import chex
import jax
import jax.numpy as jnp

from dfpo_jax.ops.checks import check, check_positive
from dfpo_jax.ops.masking import as_float
from dfpo_jax.types import Array


def gaussian_histogram(targets: Array, edges: Array, *, sigma: float) -> Array:
    """Probabilities of bins under a Gaussian around each target, cut to the bins (HL-Gauss).

        p_k = (Phi((e_{k+1} - y) / sigma) - Phi((e_k - y) / sigma)) / Z,
        Z   =  Phi((e_K - y) / sigma)     - Phi((e_0 - y) / sigma)

    with y the target, moved to the nearest edge where it lies outside of them. Imani and White
    2018, arXiv 1806.04613; Farebrother et al. 2024, arXiv 2403.03950, section 3.1.

    Args:
      targets: [...] in units of the edges.
      edges: [K + 1] ascending, K at least 1.
      sigma: deviation of the Gaussian, in the same units, above 0 (static).

    Returns:
      [..., K] float32 or wider, sums to 1, without gradient.

    Raises:
      ValueError: `sigma` is not positive, or there are fewer than two edges.
      AssertionError: `edges` is no vector.
    """
    chex.assert_rank(edges, 1)
    check_positive("sigma", sigma)
    check(len(edges) >= 2, "the number of edges", len(edges), "at least 2")
    targets, edges = jax.lax.stop_gradient((as_float(targets), as_float(edges)))
    y = jnp.clip(targets, edges[0], edges[-1])[..., None]
    below = jax.scipy.stats.norm.cdf(edges.reshape((1,) * targets.ndim + (-1,)), y, sigma)
    return jnp.diff(below, axis=-1) / (below[..., -1:] - below[..., :1])


def project_categorical(samples: Array, probabilities: Array, atoms: Array) -> Array:
    """Probabilities of atoms: the mass of every sample, shared by the two atoms around it.

        p_k = sum_s w_s max(0, 1 - |y_s - z_k| / gap)

    with y_s the sample, moved to the nearest atom where it lies outside of them, and the gap that
    between z_k and its neighbour on the side of y_s. Inside the atoms the mean is kept. Bellemare
    et al. 2017, arXiv 1707.06887, eq. 7 (C51).

    Args:
      samples: [..., S] in units of the atoms.
      probabilities: [..., S] mass w_s of each sample.
      atoms: [K] strictly ascending, K at least 2.

    Returns:
      [..., K] float32 or wider, with the sum of the samples' masses, without gradient.

    Raises:
      ValueError: there are fewer than two atoms.
      AssertionError: shapes do not match.
    """
    chex.assert_equal_shape([samples, probabilities])
    chex.assert_rank(atoms, 1)
    check(len(atoms) >= 2, "the number of atoms", len(atoms), "at least 2")
    samples, probabilities, atoms = jax.lax.stop_gradient(
        (as_float(samples), as_float(probabilities), as_float(atoms))
    )
    gaps = jnp.diff(atoms)
    shape = (1,) * samples.ndim + (-1,)
    z, before, after = (
        x.reshape(shape) for x in (atoms, jnp.append(gaps[:1], gaps), jnp.append(gaps, gaps[-1:]))
    )
    distance = jnp.clip(samples, atoms[0], atoms[-1])[..., None] - z
    share = 1.0 - jnp.where(distance < 0, -distance / before, distance / after)
    return jnp.sum(jnp.maximum(share, 0.0) * probabilities[..., None], axis=-2)
