"""Steps that shrink with the effective sample size of an off-policy batch (arXiv 2602.17616)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from dfpo_jax.metric import Metric
from dfpo_jax.types import Array

POWERS = {"sqrt": 0.5, "linear": 1.0}
WEIGHT, SQUARED = "policy/weight", "policy/squared_weight"
"""Terms with means E w and E w^2 of the sequence weights w = pi(y) / mu(y)."""
_WHEN = "where an objective compares the policy with the one that sampled (`divergence`, \
`truncated`, `flowrl` with `objective.flowrl.importance=tis_clip`)"
METRICS = (
    Metric(
        WEIGHT,
        "Mean importance weight of the responses, of the policy against the one that sampled.",
        formula="`E w`, `w = exp(sum_t (log pi - log mu))` with the sum clamped to +-30",
        healthy="Near 1, its expectation as long as both policies give the same responses some "
        "probability.",
        advice="Far below 1, the policy has left what was sampled; far above, a few responses "
        "carry it. Lower `train.behaviour_lag`, `train.epochs` or "
        "`policy_optimizer.learning_rate`.",
        when=_WHEN,
    ),
    Metric(
        SQUARED,
        "Mean squared importance weight of the responses.",
        formula="`E w^2`",
        healthy="Near 1; never below the square of `policy/weight`.",
        advice="As for `policy/effective_samples`, which is made of both.",
        when=_WHEN,
    ),
    Metric(
        "policy/effective_samples",
        "Share of the responses that the importance weights leave in effect.",
        formula="`(E w)^2 / E w^2` of the two means above",
        healthy="Near 1; 1 / n where one of n responses has all the weight.",
        advice="Where it is small, set `policy_optimizer.step_scaling`, which shortens such steps, "
        "or bring the policies closer: lower `train.behaviour_lag`, `train.epochs` or the learning "
        "rate. Long responses lower it by themselves, as w is a product over tokens.",
        when=_WHEN,
    ),
)


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
