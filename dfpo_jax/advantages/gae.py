"""Generalised advantage estimation on the value of a state (arXiv 1506.02438)."""

import dataclasses
import math
from dataclasses import dataclass, field

from dfpo_jax import ops
from dfpo_jax.advantages.interface import Advantage
from dfpo_jax.settings import check_choice, check_interval, check_unread
from dfpo_jax.types import Array


@dataclass(frozen=True)
class Risk:
    """How a distribution becomes the value of a state.

    Attributes:
      measure: rho(Z): "mean", "cvar", "mean_cvar" or "wang".
      alpha: tail mass of the CVaR.
      eta: weight of the CVaR in "mean_cvar".
      wang_shift: shift of "wang", see `ops.risk_value`; above 0 averse to risk, below 0 seeking it.

    Raises:
      ValueError: a value outside its range, or one that the measure does not read.
    """

    measure: str = "mean"
    alpha: float = 0.1
    eta: float = 0.5
    wang_shift: float = 0.75

    def __post_init__(self):
        """Check ranges and names."""
        check_choice(self, "measure", ops.RISK_MEASURES)
        check_interval(self, "alpha", "eta", low=0.0, high=1.0)
        if self.alpha == 0.0:
            raise ValueError("alpha is 0.0; it must lie in (0, 1]")
        if not math.isfinite(self.wang_shift):
            raise ValueError(f"wang_shift is {self.wang_shift}; it must be finite")
        read = {"cvar": ("alpha",), "mean_cvar": ("alpha", "eta"), "wang": ("wang_shift",)}
        unread = {"alpha", "eta", "wang_shift"} - set(read.get(self.measure, ()))
        check_unread(self, *unread, because=f"measure is {self.measure!r}")

    def value(self, quantiles: Array) -> Array:
        """rho(Z): [..., M] sorted quantiles -> [...]."""
        return ops.risk_value(quantiles, **dataclasses.asdict(self))


@dataclass(frozen=True)
class Gae:
    """GAE on rho(Z): A_i = delta_i + gamma lambda A_{i+}.

    Attributes:
      lambda_: of the estimate; the critic has its own.
      length_adaptive_alpha: 0, or alpha of lambda = 1 - 1/(alpha L) (VAPO, arXiv 2504.05118).
      risk: how a distribution becomes the value of a state.

    Raises:
      ValueError: a value outside its range, or a lambda that an adaptive one replaces.
    """

    lambda_: float = 0.95
    length_adaptive_alpha: float = 0.0
    risk: Risk = field(default_factory=Risk)

    def __post_init__(self):
        """Check ranges."""
        check_lambda(self)

    def build(self) -> Advantage:
        """The advantage; with a risk measure other than the mean it needs a distribution."""

        def estimate(view, steps, rollout):
            del rollout
            values = self.risk.value(view.law)
            result, _ = ops.gae(
                steps.rewards,
                values[:, :-1],
                steps.mask,
                discount=steps.discount,
                lambda_=lambda_of(self, steps.mask),
                final_values=ops.final_values(values, steps.mask, steps.bootstrap),
            )
            return result

        return Advantage(estimate, frozenset({"value" if self.risk.measure == "mean" else "law"}))


def check_lambda(config) -> None:
    """Raise ValueError for `lambda_` and `length_adaptive_alpha` outside their ranges."""
    check_interval(config, "lambda_", low=0.0, high=1.0)
    check_interval(config, "length_adaptive_alpha", low=0.0)
    if alpha := config.length_adaptive_alpha:
        check_unread(config, "lambda_", because=f"length_adaptive_alpha is {alpha}")


def lambda_of(config, mask: Array) -> Array | float:
    """Lambda of the estimate: a number, or [B] when it adapts to the length."""
    if config.length_adaptive_alpha == 0.0:
        return config.lambda_
    return ops.length_adaptive_lambda(mask.sum(axis=1), config.length_adaptive_alpha)
