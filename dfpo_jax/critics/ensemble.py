"""An ensemble of scalar values, all on one trunk."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from dfpo_jax.critics.interface import Critic, init_head, lambda_returns
from dfpo_jax.metric import Metric
from dfpo_jax.models.value_heads import EnsembleHead
from dfpo_jax.settings import check_interval
from dfpo_jax.types import Array, Loss

LOSSES = (
    Metric(
        "critic/loss",
        "Half the squared error of the heads' values, mean over heads and tokens, in squared value "
        "units.",
        formula="`1/2 sum_n w_n (V_n - G)^2` with the lambda-return G from the value of all heads; "
        "w_n is 1 / N, or 1 for the head whose turn the response is where heads are disjoint",
        healthy="Below half the variance of the returns, which a constant reaches. For rewards at "
        "the two ends of their range, one with probability p, that is 2 p (1 - p).",
        advice="Where it stays there, the critic knows nothing: see "
        "`eval/critic/explained_variance`. A pessimistic value (`robust`) lowers G, and with it "
        "the values, further every iteration: watch `rollout/explained_variance`.",
    ),
)


@dataclass(frozen=True)
class Ensemble:
    """The mean of linear values V_n(s), each regressed on lambda-returns: 0.5 (V_n - G)^2.

    With `disjoint` and two heads it is the critic of AsyPPO (arXiv 2510.01656), from summaries of
    the paper, which trains two small models; here heads share a trunk. G bootstraps from the mean.

    Attributes:
      num_heads: N.
      disjoint: head n learns only from the responses whose number in the batch is n modulo N.
        Responses to one prompt are consecutive: where there are at least N, every head learns from
        every prompt, and no two from the same response. Otherwise every head learns from all.
      init_scale: deviation of the heads' first values, in normalised units, where a state has a
        mean square of 1. Without `disjoint` heads differ by their first values alone, and grow
        alike as they learn.

    Raises:
      ValueError: a value outside its range, named with what is allowed.
    """

    metrics: ClassVar[tuple[Metric, ...]] = LOSSES
    num_heads: int = 2
    disjoint: bool = False
    init_scale: float = 0.1

    def __post_init__(self):
        """Check ranges."""
        check_heads(self)

    def build(self) -> Critic:
        """The critic; its reading is the heads' values [B, T, N]."""
        return ensemble_critic(self, lambda heads: jnp.mean(heads, axis=-1))


def check_heads(config: Any) -> None:
    """Raise ValueError for `num_heads` and `init_scale` outside their ranges."""
    check_interval(config, "num_heads", low=2)
    if not 0.0 < config.init_scale < float("inf"):
        raise ValueError(f"init_scale is {config.init_scale}; it must be finite and above 0")


def ensemble_critic(config: Any, value: Callable[[Array], Array]) -> Critic:
    """A critic of several scalar heads.

    Args:
      config: `num_heads`, `disjoint` and `init_scale`, as in `Ensemble`.
      value: (heads [..., N]) -> [...] value of a state, from which targets bootstrap too.
    """
    num = config.num_heads
    head = EnsembleHead(num, scale=config.init_scale)

    def read(params, states):
        return head.apply({"params": params}, states)[..., 0]

    def returns(key, heads, steps, lambda_):
        del key
        return lambda_returns(value(heads), steps, lambda_)[..., None]

    def targets(key, heads, steps, lambda_):
        found, batch = returns(key, heads, steps, lambda_)[..., 0], len(heads)
        weights = jnp.full((batch, num), 1.0 / num)
        if config.disjoint:
            weights = jax.nn.one_hot(jnp.arange(batch) % num, num)
        return EnsembleTargets(found, weights)

    def losses(params, states, rows, old_params, keys):
        del old_params, keys
        rows = jax.lax.stop_gradient(rows)
        errors = jnp.square(read(params, states)[:, :-1] - rows.returns[..., None])
        return {"loss": Loss(0.5 * jnp.sum(errors * rows.weights[:, None, :], axis=-1))}

    return Critic(
        init=lambda key, width: init_head(head, key, jnp.zeros((1, width))),
        read=read,
        law=lambda heads: value(heads)[..., None],
        returns=returns,
        targets=targets,
        losses=losses,
        gives=frozenset({"value", "heads"}),
        heads=lambda heads: heads,
    )


@struct.dataclass
class EnsembleTargets:
    """`returns` [B, R], and `weights` [B, N] of a row's errors by head, which sum to 1."""

    returns: Array
    weights: Array
