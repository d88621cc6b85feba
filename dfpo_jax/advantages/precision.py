"""GAE weighted by the inverse variance of the return; ours."""

from dataclasses import dataclass, field

import jax.numpy as jnp

from dfpo_jax.advantages.gae import Gae, Risk, check_lambda
from dfpo_jax.advantages.interface import Advantage
from dfpo_jax.settings import check_interval


@dataclass(frozen=True)
class Precision:
    """GAE on rho(Z), divided by Var Z(s_i) + floor^2.

    Where the noise of A_i has the variance Var Z(s_i), these are the weights of least variance for
    a direction that all states share. `sigma` divides by the deviation instead, which makes the
    states' advantages equally large. Variances are of the critic's law in value units, whatever
    units it learns in. Prompts that are nearly solved or nearly hopeless have the smallest
    variances, and so the largest weights, at most 1 / floor^2.

    Attributes:
      lambda_, length_adaptive_alpha, risk: as in `Gae`.
      floor: a deviation in value units, >= 1e-3, whose square is added to the variance: a new
        critic's law has no spread.

    Raises:
      ValueError: a value outside its range, or a lambda that an adaptive one replaces.
    """

    lambda_: float = 0.95
    length_adaptive_alpha: float = 0.0
    risk: Risk = field(default_factory=Risk)
    floor: float = 0.3

    def __post_init__(self):
        """Check ranges."""
        check_lambda(self)
        check_interval(self, "floor", low=1e-3)

    def build(self) -> Advantage:
        """The advantage."""
        gae = Gae(self.lambda_, self.length_adaptive_alpha, self.risk).build()

        def estimate(view, steps, rollout):
            variance = jnp.var(view.law[:, :-1], axis=-1)
            return gae.estimate(view, steps, rollout) / (variance + self.floor**2)

        return Advantage(estimate, frozenset({"law"}))
