"""Implicit quantile networks: the quantile of any level (arXiv 1806.06923)."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from dfpo_jax import ops
from dfpo_jax.critics.interface import Critic, at_successors, draw, init_head, mixed_returns
from dfpo_jax.critics.units import AFFINE, Units
from dfpo_jax.metric import Metric
from dfpo_jax.models.value_heads import ImplicitQuantileHead
from dfpo_jax.settings import check_interval
from dfpo_jax.types import Loss


@dataclass(frozen=True)
class Iqn:
    """Quantiles at random levels, by the quantile Huber loss on samples of the lambda-mixture.

    The form for language models is that of DistRLVR (openreview 3e46ayVUgj), from its public code:
    levels are drawn for every token, and a loss is the mean over levels and targets. There the
    product has the width of the hidden state; see `models.ImplicitQuantileHead`.

    Attributes:
      num_fractions: levels per token in the loss, uniform in [0, 1).
      num_quantiles: M, the midpoint levels at which a state's distribution is read, and samples per
        target.
      num_cosines: features of a level.
      hidden: width of the product of a state with a level.
      kappa: threshold of the Huber loss, in the units that the critic learns in; 0 for the
        absolute error.

    Raises:
      ValueError: a value outside its range, named with what is allowed.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "critic/loss",
            "Quantile regression loss at random levels, mean over tokens, levels and target "
            "samples, in units that the critic learns in.",
            formula="`|tau_j - 1{u < 0}| H(u) / kappa`, `u = y_k - q(tau_j)`, with the Huber "
            "function H of threshold `critic.iqn.kappa`; with 0, `|tau_j - 1{u < 0}| |u|`",
            healthy="Falling to a floor above 0 that the spread of the returns sets.",
            advice="Compare it with itself alone; `eval/critic/crps` compares critics. Where it "
            "does not fall, raise `critic_optimizer.learning_rate` or `critic.iqn.num_fractions`.",
        ),
    )
    num_fractions: int = 32
    num_quantiles: int = 32
    num_cosines: int = 64
    hidden: int = 64
    kappa: float = 1.0

    def __post_init__(self):
        """Check ranges."""
        check_interval(self, "num_fractions", "num_cosines", "hidden", low=1)
        check_interval(self, "num_quantiles", low=2)
        check_interval(self, "kappa", low=0.0)

    def build(self, units: Units = AFFINE) -> Critic:
        """The critic; its reading is the quantiles [B, T, M] at the midpoint levels, sorted."""
        head = ImplicitQuantileHead(self.hidden, self.num_cosines)

        def read(params, states):
            levels = ops.quantile_levels(self.num_quantiles)
            return jnp.sort(head.apply({"params": params}, states, levels), axis=-1)

        def returns(key, quantiles, steps, lambda_):
            after = at_successors(units.back(quantiles), steps)
            return mixed_returns(key, after, steps, lambda_)

        def losses(params, states, rows, old_params, keys):
            del old_params
            states = states[:, :-1]
            levels = draw(jax.random.uniform, keys, (*states.shape[:2], self.num_fractions))
            predicted = head.apply({"params": params}, states, levels)
            return {"loss": Loss(ops.quantile_huber(predicted, rows, levels, self.kappa))}

        return Critic(
            init=lambda key, width: init_head(head, key, jnp.zeros((1, width)), jnp.zeros(1)),
            read=read,
            law=units.back,
            returns=returns,
            targets=lambda *inputs: jax.lax.stop_gradient(units.to(returns(*inputs))),
            losses=losses,
            gives=frozenset({"value", "law"}),
        )
