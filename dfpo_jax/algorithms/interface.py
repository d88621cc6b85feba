"""What an algorithm is.

An algorithm is a few pure functions, which `algorithms.compose` makes of a critic, an advantage and
objectives. `prepare` sees the parameters at the start of an iteration and turns a rollout into
everything the losses need; `loss` is differentiated; `observe` and `adapt` change the controls
between iterations, on the host.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dfpo_jax.types import Array, ArrayTree, Batch, Context, Rollout, Term, TrainState

Controls = Mapping[str, float]


class Observed(NamedTuple):
    """Rewards of an iteration, for `Algorithm.observe`.

    Attributes:
      rewards: [B] sequence rewards, as the learner sees them.
      range: (low, high) that they lie in, or None where no bound is known.
      least_scale: the smallest unit of value where none is known.
      first: whether this is the first iteration of the run.
      clean_range: (low, high) of rewards without the noise and penalties that the chain adds, of
        the size of the verifier's own range; None where it declares none.
    """

    rewards: Any
    range: tuple[float, float] | None = None
    least_scale: float = 1e-3
    first: bool = True
    clean_range: tuple[float, float] | None = None


def _same(controls: Controls, *_) -> Controls:
    return controls


class Algorithm(NamedTuple):
    """Pure functions of an algorithm.

    Attributes:
      init: (key, policy_params) -> params by network: "policy" and, with a critic, "critic"; an
        objective may add others. Leaves may be flax partitioning boxes, which travel through
        unchanged.
      prepare: (state, rollout, key) -> (Batch, Context); nothing in it is differentiated.
      loss: (params, batch, context, key) -> dict of name -> `Term`.
      predict: (state, rollout) -> [B, R, M] sorted return quantiles in raw reward units at every
        state (M = 1 for a scalar critic), or None for algorithms without a critic.
      trajectories: (state, rollout) -> [17, B, M] positions of the flow at s_0 for 17 times
        from 0 to 1, in the units that the critic learns in, for plots; None for critics that are no
        flow.
      controls: first values of what changes between iterations, by name.
      observe: (controls, Observed) -> controls; before `prepare`.
      adapt: (controls, means of the iteration's terms by name) -> controls; after the updates.
      networks: keys of the params.
      keeps_reference: whether the state holds the policy's first parameters, to measure a KL or for
        `features`.
      features: (state, rollout) -> [B, F] `trunk.response_features` under the first policy, or None
        where the state does not hold it.
      top: K, of how many of its most probable tokens the sampler gives log-probabilities.
      separate_critic: whether terms named "policy/..." read none of the critic's parameters, and
        the others no parameters that train but those.
    """

    init: Callable[[Array, ArrayTree], ArrayTree]
    prepare: Callable[[TrainState, Rollout, Array], tuple[Batch, Context]]
    loss: Callable[[ArrayTree, Batch, Context, Array], dict[str, Term]]
    predict: Callable[[TrainState, Rollout], Array] | None = None
    trajectories: Callable[[TrainState, Rollout], Array] | None = None
    controls: Controls = {}
    observe: Callable[[Controls, Observed], Controls] = _same
    adapt: Callable[[Controls, Mapping[str, float]], Controls] = _same
    networks: tuple[str, ...] = ("policy",)
    keeps_reference: bool = False
    features: Callable[[TrainState, Rollout], Array] | None = None
    top: int = 0
    separate_critic: bool = False
