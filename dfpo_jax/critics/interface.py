"""What a critic is: pure functions of states, which know no transformer.

Shapes: B sequences, R tokens, states s_0 .. s_R of width D (see `dfpo_jax.types`). All values are
in normalised units; a critic may learn in others inside, see `critics.units`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dfpo_jax import ops
from dfpo_jax.types import Array, ArrayTree, Loss, Steps

Reading = Any
"""What a critic makes of states: a pytree of its own choice, which its other functions take."""
Rows = Any
"""A pytree whose leaves have the batch as their leading axis."""


class Critic(NamedTuple):
    """A critic. Build one by the `build` of its settings, such as `critics.Flow().build()`.

    Attributes:
      init: (key, D) -> params of the head. Leaves may be flax partitioning boxes.
      read: (params, states [B, T, D]) -> Reading, for any T.
      law: (reading) -> [B, T, M] quantiles of the return at every state, sorted ascending; M = 1
        for a critic that knows only the mean.
      returns: (key, reading, steps, lambda) -> [B, R, S] samples of the return from every state by
        the lambda-mixture (their mean, S = 1, for a critic that knows only the mean). `reading` is
        that of s_0 .. s_R; lambda is a number or [B]; at lambda 1 they are the observed returns.
      targets: (key, reading, steps, lambda) -> Rows, what `losses` needs; never differentiated.
      losses: (params, states [B, R + 1, D], rows, old_params, keys [B]) -> Loss by name. It is
        differentiated by `params` and `states`, and stops gradients to `rows` and to `old_params`,
        those of `targets`. Row b draws from keys[b] alone, so that splitting a batch changes
        nothing. A mask of its own counts no token that `steps.mask` does not.
      gives: what other parts may read, "value" and, where `law` is a distribution, "law"; "heads"
        where there are some.
      paths: (reading) -> [17, B, T, M] positions of a flow at 17 times from 0 to 1, for plots, in
        the units that it learns in.
      heads: (reading) -> [B, T, N] values of several heads that learn apart.
      quiet_steps: whether a loss relates successive states only where nothing lies between them:
        the discount must be 1 and no objective may add rewards to tokens.
    """

    init: Callable[[Array, int], ArrayTree]
    read: Callable[[ArrayTree, Array], Reading]
    law: Callable[[Reading], Array]
    returns: Callable[[Array, Reading, Steps, Array | float], Array]
    targets: Callable[[Array, Reading, Steps, Array | float], Rows]
    losses: Callable[[ArrayTree, Array, Rows, ArrayTree, Array], dict[str, Loss]]
    gives: frozenset[str]
    paths: Callable[[Reading], Array] | None = None
    heads: Callable[[Reading], Array] | None = None
    quiet_steps: bool = False


def init_head(head: Any, key: Array, *inputs: Any) -> ArrayTree:
    """Parameters of a Linen head, whose boxes stay."""
    return head.init(key, *inputs)["params"]


def at_successors(x: Array, steps: Steps) -> Array:
    """[B, R + 1, ...] of states s_0 .. s_R -> [B, R, ...] of the state after each token."""
    index = ops.successor_index(steps.mask)
    return jnp.take_along_axis(x, index.reshape(*index.shape, *(1,) * (x.ndim - 2)), axis=1)


def mixed_returns(key: Array, after: Array, steps: Steps, lambda_: Array | float) -> Array:
    """Samples [B, R, S] of the return by the lambda-mixture, see `ops.lambda_mixture`.

    Args:
      key: PRNG key.
      after: [B, R, S] samples of the return at the state after each token.
      steps: rewards, mask, bootstraps and discount.
      lambda_: a number or [B].
    """
    return ops.lambda_mixture(
        key,
        steps.rewards,
        after,
        steps.mask,
        discount=steps.discount,
        lambda_=lambda_,
        truncated=steps.bootstrap,
    )


def lambda_returns(values: Array, steps: Steps, lambda_: Array | float) -> Array:
    """lambda-returns [B, R] of values [B, R + 1] at s_0 .. s_R, by GAE (arXiv 1506.02438)."""
    _, returns = ops.gae(
        steps.rewards,
        values[:, :-1],
        steps.mask,
        discount=steps.discount,
        lambda_=lambda_,
        final_values=ops.final_values(values, steps.mask, steps.bootstrap),
    )
    return returns


def draw(sampler: Callable, keys: Array, shape: tuple[int, ...]) -> Array:
    """`sampler(key, shape[1:])` for every row's own key: [B, ...]."""
    return jax.vmap(lambda key: sampler(key, shape[1:]))(keys)
