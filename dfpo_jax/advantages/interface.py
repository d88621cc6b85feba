"""What an advantage is: a pure function of the critic's reading, the rewards and the rollout."""

from collections.abc import Callable
from typing import NamedTuple

from dfpo_jax.types import Array, Rollout, Steps


class View(NamedTuple):
    """What an advantage may read of a critic, all in normalised units.

    Attributes:
      law: [B, R + 1, M] sorted quantiles of the return at s_0 .. s_R; M = 1 for a scalar critic.
      returns: (lambda, a number or [B]) -> [B, R, S] samples of the return from every state.
    """

    law: Array
    returns: Callable[[Array | float], Array]


class Advantage(NamedTuple):
    """An advantage. Build one by the `build` of its settings, such as `advantages.Gae().build()`.

    Attributes:
      estimate: (view, steps, rollout) -> [B, R], before whitening, finite outside the mask too;
        `view` is None without a critic.
      needs: what the other parts must give: "value" or "law" of the critic, "groups" of the plan.
      whole_response: whether it compares rewards of whole responses, so that neither the discount
        nor rewards of single tokens reach it.
    """

    estimate: Callable[[View | None, Steps, Rollout], Array]
    needs: frozenset[str] = frozenset()
    whole_response: bool = False
