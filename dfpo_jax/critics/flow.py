"""DFPO's critic: the whole distribution of the return as a flow (arXiv 2602.05890)."""

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from dfpo_jax import ops
from dfpo_jax.critics.flow_inference import INFERENCE, Reader
from dfpo_jax.critics.flow_losses import (
    METRICS,
    TARGET_MODES,
    Fields,
    flow_losses,
    return_samples,
    uncertainty_weight,
)
from dfpo_jax.critics.interface import Critic, at_successors, init_head
from dfpo_jax.critics.tails import METRICS as TAIL_METRICS
from dfpo_jax.critics.tails import TAILS, check_tails, tail_weights
from dfpo_jax.critics.units import AFFINE, Units, same_law
from dfpo_jax.metric import Metric
from dfpo_jax.models.value_flow import ValueFlow, ValueFlowConfig
from dfpo_jax.settings import check_choice, check_interval, check_unread
from dfpo_jax.types import Array, ArrayTree, Steps


@dataclass(frozen=True)
class Flow:
    """Losses and inference of the value flow (algorithm sections 3 to 5).

    Attributes:
      head: sizes of the velocity network.
      num_samples: S, noise/time pairs per token in anchor, flow matching and geometry, samples per
        target, and points at which the spread is measured.
      num_steps: K, solver steps of the old field.
      solver: "euler", "midpoint", "heun" or "rk4".
      first_step: length of the first of these steps over that of each other one.
      value_bound: 0, or the largest size of a return and of a state of the flow, in the units that
        the critic learns in: targets and solver steps are clipped to it, so that neither an outlier
        nor an unstable step carries the critic away.
      num_quantiles: M, quantiles by which a state's distribution is read, also in the tail losses.
      inference: "one_step" reads the flow map, "ode" integrates K steps, "euler" reads the mean
        alone, by one Euler step from M noises (Value Flows, arXiv 2510.07650; it takes one random
        noise, of which this is the expectation). With "euler" the critic gives no law; its targets
        integrate K steps.
      target_mode: "mixture" (law of the lambda-mixture), "average" (quantile by quantile) or
        "flowcritic" (the average of samples whose noises are independent from state to state;
        FlowCritic, arXiv 2510.22686, from a third-party summary).
      noise: "independent", or "shared": anchor and flow matching have one noise and one time, and
        the noise is that from which the target sample came (Value Flows).
      anchor_weight: bootstrapped anchor.
      dcfm_weight: distributional flow matching between successive states. In asinh units the flows
        of two states are related only where their returns are equal, so that it leaves out tokens
        with a reward and needs a discount of 1.
      dcfm_base: "keep" or "shift".
      geometry: "map", "reflow" or "straight".
      geometry_weight: geometric consistency.
      cvar_weight, upper_gain_weight, mean_shift_weight, tail_shape_weight, tail_curvature_weight:
        conditional risk and tail shape of the one-step quantiles, in the units that the critic
        learns in.
      tail_targets: what they are compared with: "flow", the old field's K-step quantiles, or
        "returns", the sorted target samples.
      tail_alpha, tail_beta: mass of the lower and the upper tail.
      uncertainty: weight on anchor and flow matching: "none", "emphasize", "discount" or
        "coefficient_of_variation", see `ops.uncertainty_weights`.
      uncertainty_temperature: its temperature, in the units that the critic learns in; a pure
        number with "coefficient_of_variation".

    Raises:
      ValueError: a value outside its range, or one that no loss reads; named with what is allowed.
    """

    metrics: ClassVar[tuple[Metric, ...]] = METRICS + TAIL_METRICS
    head: ValueFlowConfig = field(default_factory=ValueFlowConfig)
    num_samples: int = 8
    num_steps: int = 4
    solver: str = "midpoint"
    first_step: float = 2.0
    value_bound: float = 0.0
    num_quantiles: int = 32
    inference: str = "one_step"
    target_mode: str = "mixture"
    noise: str = "independent"
    anchor_weight: float = 1.0
    dcfm_weight: float = 1.0
    dcfm_base: str = "keep"
    geometry: str = "map"
    geometry_weight: float = 1.0
    cvar_weight: float = 0.0
    upper_gain_weight: float = 0.0
    mean_shift_weight: float = 0.0
    tail_shape_weight: float = 0.0
    tail_curvature_weight: float = 0.0
    tail_targets: str = "flow"
    tail_alpha: float = 0.1
    tail_beta: float = 0.1
    uncertainty: str = "none"
    uncertainty_temperature: float = 1.0

    def __post_init__(self):
        """Check ranges and names."""
        check_interval(self, "num_samples", "num_steps", low=1)
        check_interval(self, "num_quantiles", low=3)
        check_choice(self, "solver", tuple(sorted(ops.SOLVERS)))
        check_choice(self, "inference", INFERENCE)
        check_choice(self, "target_mode", TARGET_MODES)
        check_choice(self, "noise", ("independent", "shared"))
        check_choice(self, "dcfm_base", ops.CFM_BASES)
        check_choice(self, "geometry", ops.GEOMETRY_MODES)
        check_choice(self, "tail_targets", ("flow", "returns"))
        check_choice(self, "uncertainty", ops.UNCERTAINTY_MODES)
        weights = [name for name in self.__dataclass_fields__ if name.endswith("_weight")]
        check_interval(self, *weights, "value_bound", low=0.0)
        for name in ("first_step", "uncertainty_temperature"):
            if getattr(self, name) <= 0.0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        check_tails(self)
        if self.inference == "one_step" and self.geometry_weight * (self.geometry == "map") == 0:
            raise ValueError(
                'inference is "one_step", which reads the flow map; that needs geometry "map" with '
                f"a positive geometry_weight (now {self.geometry!r}, {self.geometry_weight})"
            )
        self._refuse_unread()

    def _refuse_unread(self) -> None:
        weights = tail_weights(self)
        if not any(weights[name] for name in TAILS if name != "tail_curvature"):
            check_unread(self, "tail_targets", because="no loss that has targets has a weight")
        if self.uncertainty == "none":
            check_unread(self, "uncertainty_temperature", because="uncertainty is 'none'")
        if self.dcfm_weight == 0.0:
            check_unread(self, "dcfm_base", because="dcfm_weight is 0.0")
        if self.geometry_weight == 0.0:
            check_unread(self, "geometry", because="geometry_weight is 0.0")
        if self.anchor_weight == 0.0:
            check_unread(self, "noise", because="anchor_weight is 0.0")
            if self.dcfm_weight == 0.0:
                because = "anchor_weight and dcfm_weight are 0.0"
                check_unread(self, "uncertainty", because=because)
        if self.target_mode == "flowcritic":
            because = "target_mode 'flowcritic' mixes noises, so that no sample has one of its own"
            check_unread(self, "noise", because=because)

    @property
    def reader(self) -> Reader:
        """How the flow is read."""
        clip = (-self.value_bound, self.value_bound) if self.value_bound > 0 else None
        return Reader(self.inference, self.num_steps, self.solver, self.first_step, clip)

    def build(self, units: Units = AFFINE) -> Critic:
        """The critic; its reading is a `FlowReading`."""
        head, reader = ValueFlow(self.head), dataclasses.replace(self.reader, units=units)

        def field(params, condition):
            return lambda z, t, d: head.apply(
                {"params": params}, condition, z, t, d, method="velocity"
            )

        def read(params, states):
            return FlowReading(params, head.apply({"params": params}, states, method="condition"))

        def successors(reading, steps):
            return field(reading.params, at_successors(reading.condition, steps))

        def law(reading):
            velocity = field(*reading)
            return reader.law(velocity, reading.condition.shape[:2], self.num_quantiles)

        def samples(key, reading, steps, lambda_):
            now = field(reading.params, reading.condition[:, :-1])
            inputs = now, successors(reading, steps), steps, lambda_, units
            return return_samples(self, key, *inputs)

        def targets(key, reading, steps, lambda_):
            now = field(reading.params, reading.condition[:, :-1])
            returns, noise = samples(key, reading, steps, lambda_)
            return FlowTargets(
                samples=units.to(returns),
                condition=reading.condition,
                steps=steps,
                has_successor=_has_successor(steps) * same_law(units, steps),
                weight=uncertainty_weight(self, now, steps.mask),
                noise=noise,
            )

        def losses(params, states, rows, old_params, keys):
            rows, old_params = jax.lax.stop_gradient((rows, old_params))
            old = FlowReading(old_params, rows.condition)
            live = read(params, states).condition[:, :-1]
            fields = Fields(
                live=field(params, live),
                old=field(old_params, rows.condition[:, :-1]),
                next_old=successors(old, rows.steps),
            )
            inputs = rows.samples, rows.steps, rows.has_successor, rows.weight, rows.noise
            return flow_losses(self, keys, fields, *inputs)

        def paths(reading):
            return reader.paths(field(*reading), reading.condition.shape[:2], self.num_quantiles)

        def init(key, width):
            return init_head(head, key, jnp.zeros((1, 1, width)), jnp.zeros((1, 1, 1)), 0.0, 0.0)

        def returns(*inputs):
            return samples(*inputs)[0]

        gives = frozenset({"value"} if self.inference == "euler" else {"value", "law"})
        related = self.dcfm_weight > 0.0 and not units.affine
        return Critic(init, read, law, returns, targets, losses, gives, paths, quiet_steps=related)


def _has_successor(steps: Steps) -> Array:
    """[B, R] 1 on tokens after which there is a state with a return of its own."""
    return steps.mask * (1.0 - ops.last_valid(steps.mask) * (1.0 - steps.bootstrap[:, None]))


class FlowReading(NamedTuple):
    """A field bound to states: `params` of the head, and their condition [B, T, C]."""

    params: ArrayTree
    condition: Array


@struct.dataclass
class FlowTargets:
    """What the losses need per token.

    Attributes:
      samples: [B, R, S] return samples, in the units that the critic learns in.
      condition: [B, R + 1, C] the old head's condition at s_0 .. s_R.
      steps: the token MDP.
      has_successor: [B, R] 1 where the state after a token has a return of its own, to whose flow
        that of the state before it is related.
      weight: [B, R] uncertainty weight of anchor and flow matching.
      noise: [B, R, S] the noise of anchor and flow matching, or None where each draws its own.
    """

    samples: Array
    condition: Array
    steps: Steps
    has_successor: Array
    weight: Array
    noise: Array | None = None
