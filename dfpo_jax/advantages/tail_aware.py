"""GAE weighted by whether the return lies in the tail of its state's law (DistRLVR)."""

from dataclasses import dataclass

import jax.numpy as jnp

from dfpo_jax import ops
from dfpo_jax.advantages.gae import Gae, check_lambda
from dfpo_jax.advantages.interface import Advantage
from dfpo_jax.settings import check_choice, check_interval


@dataclass(frozen=True)
class TailAware:
    """w (G - V): the advantage of GAE times `ops.tail_aware_weights` of its return G.

    From the public code of DistRLVR (openreview 3e46ayVUgj, a workshop paper), whose whitening is
    `advantage.whiten`. Its quantile is taken from the critic's by linear interpolation (ours).

    Attributes:
      lambda_, length_adaptive_alpha: as in `Gae`.
      tail: mass of the tail; the paper's alpha.
      temperature: width of the gate in value units, the paper's b. There rewards keep their own
        units. Here a known range of rewards becomes [-1, 1], so that of rewards 0 and 1 a raw width
        of 0.5 is a temperature of 1.
      side: "upper" weights returns above the quantile at level 1 - tail, "lower" those below the
        one at level tail.

    Raises:
      ValueError: a value outside its range, or a lambda that an adaptive one replaces.
    """

    lambda_: float = 0.95
    length_adaptive_alpha: float = 0.0
    tail: float = 0.25
    temperature: float = 0.5
    side: str = "upper"

    def __post_init__(self):
        """Check ranges and names."""
        check_lambda(self)
        check_choice(self, "side", ops.TAIL_SIDES)
        check_interval(self, "tail", low=0.0, high=1.0)
        for name in ("tail", "temperature"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be finite and above 0")

    def build(self) -> Advantage:
        """The advantage."""
        gae = Gae(self.lambda_, self.length_adaptive_alpha).build()
        level = 1.0 - self.tail if self.side == "upper" else self.tail

        def estimate(view, steps, rollout):
            law, advantages = view.law[:, :-1], gae.estimate(view, steps, rollout)
            weights = ops.tail_aware_weights(
                advantages + jnp.mean(law, axis=-1),
                ops.quantile_at(law, level),
                steps.mask,
                temperature=self.temperature,
                tail=self.tail,
                side=self.side,
            )
            return weights * advantages

        return Advantage(estimate, frozenset({"law"}))
