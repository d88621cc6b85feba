"""PPO's critic: a scalar value per state (arXiv 1707.06347; per token, as in arXiv 2203.02155)."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from dfpo_jax.critics.interface import Critic, init_head, lambda_returns
from dfpo_jax.metric import Metric
from dfpo_jax.models.value_heads import ScalarHead
from dfpo_jax.settings import check_interval
from dfpo_jax.types import Array, Loss


@dataclass(frozen=True)
class Scalar:
    """A linear value V(s), regressed on lambda-returns: 0.5 (V - G)^2.

    Attributes:
      value_clip: 0, or the largest move of a value from its old one that the loss rewards, in
        normalised units.

    Raises:
      ValueError: a value outside its range, named with what is allowed.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "critic/loss",
            "Half the squared error of the value, mean over tokens, in squared value units.",
            formula="`1/2 (V - G)^2` with the lambda-return G; with `critic.scalar.value_clip` "
            "the larger one of it and that of the clipped value",
            healthy="Below half the variance of the returns, which a constant reaches. For rewards "
            "at the two ends of their range, one with probability p, that is 2 p (1 - p).",
            advice="Where it stays there, the critic knows nothing: see "
            "`eval/critic/explained_variance`. Where it is far above 1, returns lie outside the "
            "units: bound the rewards with `rewards.clip.bound`.",
        ),
    )
    value_clip: float = 0.0

    def __post_init__(self):
        """Check ranges."""
        check_interval(self, "value_clip", low=0.0)

    def build(self) -> Critic:
        """The critic; its reading is the values [B, T]."""
        head = ScalarHead()

        def read(params, states):
            return head.apply({"params": params}, states)

        def returns(key, values, steps, lambda_):
            del key
            return lambda_returns(values, steps, lambda_)[..., None]

        def targets(key, values, steps, lambda_):
            del key
            return ScalarTargets(lambda_returns(values, steps, lambda_), values[:, :-1])

        def losses(params, states, rows, old_params, keys):
            del old_params, keys
            rows = jax.lax.stop_gradient(rows)
            values, old = read(params, states)[:, :-1], rows.old_values
            errors = jnp.square(values - rows.returns)
            if self.value_clip > 0.0:
                moved = old + jnp.clip(values - old, -self.value_clip, self.value_clip)
                errors = jnp.maximum(errors, jnp.square(moved - rows.returns))
            return {"loss": Loss(0.5 * errors)}

        return Critic(
            init=lambda key, width: init_head(head, key, jnp.zeros((1, width))),
            read=read,
            law=lambda values: values[..., None],
            returns=returns,
            targets=targets,
            losses=losses,
            gives=frozenset({"value"}),
        )


@struct.dataclass
class ScalarTargets:
    """`returns` and `old_values`, both [B, R]."""

    returns: Array
    old_values: Array
