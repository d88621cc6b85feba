"""Steps that shrink with the effective sample size of an off-policy batch (arXiv 2602.17616)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from dfpo_jax.types import Array

POWERS = {"sqrt": 0.5, "linear": 1.0}
WEIGHT, SQUARED = "policy/weight", "policy/squared_weight"
"""Terms with means E w and E w^2 of the sequence weights w = pi(y) / mu(y)."""


def effective_samples(means: Mapping[str, Array | float]) -> Array:
    """Share of a batch that its importance weights leave: (E w)^2 / E w^2, in (0, 1].

    0 where no response counts, as all were cut and `returns.overlong` leaves those out. Then both
    means are 0; a quotient of NaN would reach the parameters, whose gradients are finite.

    Args:
      means: of the terms, at least those of the weights.
    """
    squared = jnp.asarray(means[SQUARED])
    return means[WEIGHT] ** 2 / jnp.maximum(squared, jnp.finfo(squared.dtype).tiny)


def scale_by_effective_samples(scaling: str, base: float) -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by min(1, share / base)^p, the last link of an optimizer (VCPO).

    It reads the extra argument `means` of the minibatch, the means of its terms.

    Args:
      scaling: "sqrt" (p = 1/2) or "linear" (p = 1).
      base: share of effective samples from which steps are whole, in (0, 1].
    """

    def update(updates, state, params=None, *, means, **extra):
        del params, extra
        share = effective_samples(means) / base
        factor = jnp.minimum(share, 1.0) ** POWERS[scaling]
        return jax.tree.map(lambda x: x * factor, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
