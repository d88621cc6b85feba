"""GAE in units of the return's own spread; ours."""

from dataclasses import dataclass, field

import jax.numpy as jnp

from dfpo_jax.advantages.gae import Gae, Risk, check_lambda
from dfpo_jax.advantages.interface import Advantage
from dfpo_jax.settings import check_interval


@dataclass(frozen=True)
class Sigma:
    """GAE on rho(Z), divided by std Z(s_i) + floor.

    Attributes:
      lambda_, length_adaptive_alpha, risk: as in `Gae`.
      floor: added to the spread, in normalised value units, >= 1e-6: a new critic's law has no
        spread.

    Raises:
      ValueError: a value outside its range, or a lambda that an adaptive one replaces.
    """

    lambda_: float = 0.95
    length_adaptive_alpha: float = 0.0
    risk: Risk = field(default_factory=Risk)
    floor: float = 0.1

    def __post_init__(self):
        """Check ranges."""
        check_lambda(self)
        check_interval(self, "floor", low=1e-6)

    def build(self) -> Advantage:
        """The advantage."""
        gae = Gae(self.lambda_, self.length_adaptive_alpha, self.risk).build()

        def estimate(view, steps, rollout):
            spread = jnp.std(view.law[:, :-1], axis=-1)
            return gae.estimate(view, steps, rollout) / (spread + self.floor)

        return Advantage(estimate, frozenset({"law"}))
