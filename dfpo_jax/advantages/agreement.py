"""AsyPPO: GAE that leaves out tokens on which a critic's heads agree (arXiv 2510.01656)."""

from dataclasses import dataclass

import jax.numpy as jnp

from dfpo_jax import ops
from dfpo_jax.advantages.gae import Gae, Risk, check_lambda
from dfpo_jax.advantages.interface import Advantage
from dfpo_jax.settings import check_interval


@dataclass(frozen=True)
class Agreement:
    """GAE on the mean of the heads; 0 where their deviation is smallest.

    Known from summaries of the paper alone, which do not give the share of tokens.

    Attributes:
      lambda_, length_adaptive_alpha: as in `Gae`.
      share: of the valid tokens of an iteration, those that are left out; ours.

    Raises:
      ValueError: a value outside its range, or a lambda that an adaptive one replaces.
    """

    lambda_: float = 0.95
    length_adaptive_alpha: float = 0.0
    share: float = 0.2

    def __post_init__(self):
        """Check ranges."""
        check_lambda(self)
        check_interval(self, "share", low=0.0, high=1.0)

    def build(self) -> Advantage:
        """The advantage."""
        gae = Gae(self.lambda_, self.length_adaptive_alpha, Risk()).build()

        def keep(view, steps):
            spread = jnp.std(view.heads[:, :-1], axis=-1)
            return 1.0 - ops.lowest_share(spread, steps.mask, self.share)

        return Advantage(gae.estimate, frozenset({"value", "heads"}), keep=keep)
