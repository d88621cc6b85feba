"""A pessimistic value of an ensemble: robust Bellman targets."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp

from dfpo_jax import ops
from dfpo_jax.critics.ensemble import LOSSES, check_heads, ensemble_critic
from dfpo_jax.critics.interface import Critic
from dfpo_jax.metric import Metric
from dfpo_jax.settings import check_choice, check_interval, check_unread


@dataclass(frozen=True)
class Robust:
    """The worst case over an ensemble of linear values, as V(s) and in the targets' bootstrap.

    DVPO (arXiv 2512.03847) compares with "Robust Bellman PPO", of which summaries say only that it
    takes the minimum of values; its equations, number of heads and radius were not found. This
    form is ours: generalised advantage estimation and lambda-returns on V. "tv" is the worst case
    within a total-variation distance, whose dual RFQI (arXiv 2208.05129) solves by a network.

    Attributes:
      kind: V(s) is the "minimum" over the heads, or "tv", `ops.robust_value` of the sorted heads.
      radius: of "tv", in [0, 1].
      lowest: of "tv", the smallest return there can be, in value units, in which rewards of a known
        range lie in [-1, 1].
      num_heads, disjoint, init_scale: as in `Ensemble`.

    Raises:
      ValueError: a value outside its range, or one that the kind does not read.
    """

    metrics: ClassVar[tuple[Metric, ...]] = LOSSES
    kind: str = "minimum"
    radius: float = 0.5
    lowest: float = -1.0
    num_heads: int = 4
    disjoint: bool = False
    init_scale: float = 0.1

    def __post_init__(self):
        """Check ranges and names."""
        check_choice(self, "kind", ("minimum", "tv"))
        check_interval(self, "radius", low=0.0, high=1.0)
        if not abs(self.lowest) < float("inf"):
            raise ValueError(f"lowest is {self.lowest}; it must be finite")
        check_heads(self)
        if self.kind == "minimum":
            check_unread(self, "radius", "lowest", because="kind is 'minimum'")

    def build(self) -> Critic:
        """The critic; its reading is the heads' values [B, T, N]."""

        def worst(heads):
            if self.kind == "minimum":
                return jnp.min(heads, axis=-1)
            ordered = jnp.sort(heads, axis=-1)
            return ops.robust_value(ordered, radius=self.radius, lowest=self.lowest)

        return ensemble_critic(self, worst)
