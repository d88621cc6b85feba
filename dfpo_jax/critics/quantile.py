"""Quantile regression: M linear quantiles of the return (arXiv 1710.10044), and DVPO's critic."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from dfpo_jax import ops
from dfpo_jax.critics.interface import Critic, at_successors, init_head, mixed_returns
from dfpo_jax.critics.tails import METRICS, check_tails, risk_losses, tail_weights
from dfpo_jax.critics.units import AFFINE, Units
from dfpo_jax.metric import Metric
from dfpo_jax.models.value_heads import EnsembleHead, QuantileHead
from dfpo_jax.settings import check_choice, check_interval, check_unread
from dfpo_jax.types import Array, Loss


@dataclass(frozen=True)
class Quantile:
    """Quantiles of the return, by the quantile Huber loss on samples of it.

    With several heads, a quantile is the mean over the heads. Losses with a weight of their own
    are those of DVPO (arXiv 2512.03847). Their formulas are from third-party code; the paper was
    not read, and no official code was found. As in that code, every loss but `head_consistency` is
    of the mean over the heads, so heads differ by their first values alone.

    Attributes:
      num_quantiles: M.
      kappa: threshold of the Huber loss, in the units that the critic learns in; 0 for the
        absolute error, whose minimum is at the quantiles themselves.
      target_mode: "mixture" (samples of the lambda-mixture of laws) or "average" (lambda-average,
        quantile by quantile: the targets of DVPO's distributional GAE).
      num_heads: N.
      levels: of quantile j, "midpoint", (j - 1/2) / M, or "right", j / M. What reads the law takes
        quantiles for those at the midpoints.
      risk_weight: the quantile loss once more, each quantile by its weight omega.
      risk_emphasis, risk_rate: omega, see `ops.risk_weights`.
      cvar_weight, upper_gain_weight, mean_shift_weight, tail_shape_weight, tail_curvature_weight:
        losses of the sorted quantiles against the sorted targets.
      tail_alpha, tail_beta: mass of the lower and the upper tail.
      head_consistency_weight: distance between heads.

    Raises:
      ValueError: a value outside its range, or one that no loss reads; named with what is allowed.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "critic/loss",
            "Quantile regression loss, mean over tokens, quantiles and target samples, in units "
            "that the critic learns in.",
            formula="`|tau_j - 1{u < 0}| H(u) / kappa`, `u = y_k - q_j`, with the Huber function H "
            "of threshold `critic.quantile.kappa`; with 0, `|tau_j - 1{u < 0}| |u|`",
            healthy="With kappa 0 it falls from half of mean |y|, where the head starts, to a "
            "quarter of the mean difference of two returns of one state, not to 0.",
            advice="Compare it with itself alone; `eval/critic/crps` compares critics. Where it "
            "does not fall, raise `critic_optimizer.learning_rate`.",
        ),
        Metric(
            "critic/risk",
            "The same loss with each quantile weighted by omega.",
            formula="`mean_j omega_j loss_j`, omega by `critic.quantile.risk_emphasis` and "
            "`critic.quantile.risk_rate`",
            healthy="Below `critic/loss`, as no omega is above 1, and moving with it.",
            advice="As for `critic/loss`.",
            when="with `critic.quantile.risk_weight` above 0",
        ),
        *METRICS,
        Metric(
            "critic/head_consistency",
            "Squared distance between the quantiles of two heads, summed over the quantiles, mean "
            "over pairs of heads and tokens, in squared units that the critic learns in.",
            formula="`2 / (N (N - 1)) sum_(i<k) sum_j (q_ij - q_kj)^2`",
            healthy="It falls towards 0 from the heads' first values. Divided by the number of "
            "quantiles it compares with the variance of the returns.",
            advice="Where it grows, raise `critic.quantile.head_consistency_weight`. At 0 the "
            "heads are one, and what reads their disagreement reads nothing.",
            when="with several heads and `critic.quantile.head_consistency_weight` above 0",
        ),
    )
    num_quantiles: int = 32
    kappa: float = 0.0
    target_mode: str = "mixture"
    num_heads: int = 1
    levels: str = "midpoint"
    risk_weight: float = 0.0
    risk_emphasis: str = "lower"
    risk_rate: float = 1.0
    cvar_weight: float = 0.0
    upper_gain_weight: float = 0.0
    mean_shift_weight: float = 0.0
    tail_shape_weight: float = 0.0
    tail_curvature_weight: float = 0.0
    tail_alpha: float = 0.1
    tail_beta: float = 0.1
    head_consistency_weight: float = 0.0

    def __post_init__(self):
        """Check ranges and names."""
        check_interval(self, "num_quantiles", low=2)
        check_interval(self, "num_heads", low=1)
        check_choice(self, "target_mode", ("mixture", "average"))
        check_choice(self, "levels", ops.QUANTILE_LEVELS)
        check_choice(self, "risk_emphasis", ops.RISK_EMPHASES)
        weights = [name for name in self.__dataclass_fields__ if name.endswith("_weight")]
        check_interval(self, *weights, "kappa", low=0.0)
        if self.risk_rate <= 0.0:
            raise ValueError(f"risk_rate is {self.risk_rate}; it must be above 0")
        check_tails(self)
        if self.risk_weight == 0.0:
            check_unread(self, "risk_emphasis", "risk_rate", because="risk_weight is 0.0")
        if self.num_heads == 1:
            check_unread(self, "head_consistency_weight", because="num_heads is 1")
        if self.tail_curvature_weight > 0.0 and self.num_quantiles < 3:
            raise ValueError(
                f"num_quantiles is {self.num_quantiles}; it must be at least 3 where "
                "tail_curvature_weight is above 0"
            )

    def build(self, units: Units = AFFINE) -> Critic:
        """The critic.

        Its reading is the quantiles [B, T, M], sorted, and with several heads those of each,
        [B, T, N, M], as they are; in the units that it learns in.
        """
        several = self.num_heads > 1
        shape = (self.num_heads, self.num_quantiles)
        head = EnsembleHead(*shape) if several else QuantileHead(self.num_quantiles)

        def raw(params, states):
            return head.apply({"params": params}, states)

        def read(params, states):
            found = raw(params, states)
            return found if several else jnp.sort(found, axis=-1)

        def law(reading):
            ordered = jnp.sort(jnp.mean(reading, axis=-2), axis=-1) if several else reading
            return units.back(ordered)

        def returns(key, reading, steps, lambda_):
            quantiles = law(reading)
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
            found = raw(params, states)[:, :-1]
            if not several:
                return _losses(self, found, rows)
            terms = _losses(self, jnp.mean(found, axis=-2), rows)
            if self.head_consistency_weight > 0.0:
                apart = ops.head_consistency(found)
                terms["head_consistency"] = Loss(apart, weight=self.head_consistency_weight)
            return terms

        gives = {"value", "law", "heads"} if several else {"value", "law"}
        return Critic(
            init=lambda key, width: init_head(head, key, jnp.zeros((1, width))),
            read=read,
            law=law,
            returns=returns,
            targets=lambda *inputs: jax.lax.stop_gradient(units.to(returns(*inputs))),
            losses=losses,
            gives=frozenset(gives),
            heads=(lambda reading: jnp.mean(units.back(reading), axis=-1)) if several else None,
        )


def _losses(config: Quantile, quantiles: Array, targets: Array) -> dict[str, Loss]:
    """Losses of quantiles [B, R, M], in the order of their levels, against samples [B, R, K]."""
    # Here, because `build` may run before processes connect, and until then JAX must not compute.
    levels = ops.quantile_levels(config.num_quantiles, config.levels)
    by_level = ops.quantile_huber_by_level(quantiles, targets, levels, config.kappa)
    terms = {"loss": Loss(jnp.mean(by_level, axis=-1))}
    if config.risk_weight > 0.0:
        options = {"emphasis": config.risk_emphasis, "rate": config.risk_rate}
        omega = ops.risk_weights(levels, **options).reshape(1, 1, -1)
        terms["risk"] = Loss(jnp.mean(omega * by_level, axis=-1), weight=config.risk_weight)
    weights = tail_weights(config)
    if not any(weights.values()):
        return terms
    # Tails are prefixes and suffixes: neither the quantiles nor the targets come in order.
    q, goal = (jnp.sort(x, axis=-1) for x in (quantiles, targets))
    return terms | risk_losses(weights, q, goal, config.tail_alpha, config.tail_beta)
