"""The rank of the return within the distribution of its state; ours."""

from dataclasses import dataclass

import jax.numpy as jnp

from dfpo_jax import ops
from dfpo_jax.advantages.gae import check_lambda, lambda_of
from dfpo_jax.advantages.interface import Advantage
from dfpo_jax.settings import check_interval


@dataclass(frozen=True)
class Rank:
    """The mean of 2 F_{Z(s_i)}(G) - 1 over samples G of the return: in [-1, 1], whatever the tails.

    Attributes:
      lambda_, length_adaptive_alpha: of the samples, as in `Gae`.
      bandwidth: in value units, 0 for none. A critic's samples lie around the values that a return
        takes, not on them, so that the rank of such a value depends on errors of the critic. A
        bandwidth above these errors, `ops.cdf`'s, averages them out: on a law of two values that
        are further apart, the advantage becomes that of `Gae` over their distance. Laws wider than
        the bandwidth are ranked as before.

    Raises:
      ValueError: a value outside its range, or a lambda that an adaptive one replaces.
    """

    lambda_: float = 0.95
    length_adaptive_alpha: float = 0.0
    bandwidth: float = 0.0

    def __post_init__(self):
        """Check ranges."""
        check_lambda(self)
        check_interval(self, "bandwidth", low=0.0)

    def build(self) -> Advantage:
        """The advantage."""

        def estimate(view, steps, rollout):
            del rollout
            samples, current = view.returns(lambda_of(self, steps.mask)), view.law[:, :-1]
            points = jnp.broadcast_to(current[:, :, None], (*samples.shape, current.shape[-1]))
            return jnp.mean(2.0 * ops.cdf(points, samples, self.bandwidth) - 1.0, axis=-1)

        return Advantage(estimate, frozenset({"law"}))
