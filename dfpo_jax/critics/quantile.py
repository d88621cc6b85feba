"""Quantile regression: M linear quantiles of the return (arXiv 1710.10044)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from dfpo_jax import ops
from dfpo_jax.critics.interface import Critic, at_successors, init_head, mixed_returns
from dfpo_jax.models.value_heads import QuantileHead
from dfpo_jax.settings import check_choice, check_interval
from dfpo_jax.types import Loss


@dataclass(frozen=True)
class Quantile:
    """Quantiles at the levels (j - 1/2) / M, by the quantile Huber loss on samples of the return.

    Attributes:
      num_quantiles: M.
      kappa: threshold of the Huber loss in normalised units; 0 for the absolute error, whose
        minimum is at the quantiles themselves.
      target_mode: "mixture" (samples of the lambda-mixture of laws) or "average" (lambda-average,
        quantile by quantile).

    Raises:
      ValueError: a value outside its range, named with what is allowed.
    """

    num_quantiles: int = 32
    kappa: float = 0.0
    target_mode: str = "mixture"

    def __post_init__(self):
        """Check ranges and names."""
        check_interval(self, "num_quantiles", low=2)
        check_interval(self, "kappa", low=0.0)
        check_choice(self, "target_mode", ("mixture", "average"))

    def build(self) -> Critic:
        """The critic; its reading is the quantiles [B, T, M], sorted."""
        head = QuantileHead(self.num_quantiles)

        def raw(params, states):
            return head.apply({"params": params}, states)

        def returns(key, quantiles, steps, lambda_):
            if self.target_mode == "mixture":
                return mixed_returns(key, at_successors(quantiles, steps), steps, lambda_)
            return ops.lambda_average(
                steps.rewards,
                quantiles[:, :-1],
                steps.mask,
                discount=steps.discount,
                lambda_=lambda_,
                final_values=ops.final_values(quantiles, steps.mask, steps.bootstrap),
            )

        def losses(params, states, rows, old_params, keys):
            del old_params, keys
            # Here, because `build` may run before processes connect, and until then JAX must not
            # compute.
            levels = ops.quantile_levels(self.num_quantiles)
            predicted = raw(params, states)[:, :-1]
            return {"loss": Loss(ops.quantile_huber(predicted, rows, levels, self.kappa))}

        return Critic(
            init=lambda key, width: init_head(head, key, jnp.zeros((1, width))),
            read=lambda params, states: jnp.sort(raw(params, states), axis=-1),
            law=lambda quantiles: quantiles,
            returns=returns,
            targets=lambda *inputs: jax.lax.stop_gradient(returns(*inputs)),
            losses=losses,
            gives=frozenset({"value", "law"}),
        )
