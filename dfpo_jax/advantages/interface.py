"""What an advantage is: a pure function of the critic's reading, the rewards and the rollout."""

from collections.abc import Callable
from typing import NamedTuple

from dfpo_jax.types import Array, Rollout, Steps


class Scores(NamedTuple):
    """How much every response weighs in the gradient of an off-policy update.

    Attributes:
      squared_norms: [B] ||grad log pi(y)||^2 over all that trains in the policy.
      log_weights: [B] log pi(y) - log mu(y), nats per response; mu drew it.
    """

    squared_norms: Array
    log_weights: Array


class View(NamedTuple):
    """What an advantage may read of a critic and of the policy; values are in normalised units.

    Attributes:
      law: [B, R + 1, M] sorted quantiles of the return at s_0 .. s_R; M = 1 for a scalar critic.
      returns: (lambda, a number or [B]) -> [B, R, S] samples of the return from every state.
      heads: [B, R + 1, N] values of a critic's heads; of critics that give "heads", else None.
      scores: of advantages that need "scores", else None. Without a critic all else is None.
    """

    law: Array | None
    returns: Callable[[Array | float], Array] | None
    heads: Array | None = None
    scores: Scores | None = None


class Advantage(NamedTuple):
    """An advantage. Build one by the `build` of its settings, such as `advantages.Gae().build()`.

    Attributes:
      estimate: (view, steps, rollout) -> [B, R], before whitening, finite outside the mask too;
        `view` is None without a critic or scores.
      needs: what the other parts must give: "value", "law" or "heads" of the critic, "groups" or
        "pool" of the plan; "scores", which cost a backward pass for every response.
      whole_response: whether it compares rewards of whole responses, so that neither the discount
        nor rewards of single tokens reach it.
      keep: (view, steps) -> [B, R], 1 on tokens whose advantage counts and 0 on those whose is set
        to 0, after whitening; None for all.
    """

    estimate: Callable[[View | None, Steps, Rollout], Array]
    needs: frozenset[str] = frozenset()
    whole_response: bool = False
    keep: Callable[[View, Steps], Array] | None = None
