"""The flow critic's control: the same network and steps, but the scalar lambda-return as target."""

from dataclasses import dataclass, field
from typing import ClassVar

import jax.numpy as jnp

from dfpo_jax import ops
from dfpo_jax.critics.flow import Flow, FlowTargets
from dfpo_jax.critics.flow_losses import ANCHOR
from dfpo_jax.critics.interface import Critic
from dfpo_jax.metric import Metric
from dfpo_jax.models.value_flow import ValueFlowConfig
from dfpo_jax.settings import check_interval


@dataclass(frozen=True)
class ScalarFlow:
    """A flow to the lambda-return of mean values; what `Flow` gains over it, the law gives.

    The target of every sample of a token is one number, so that noise is only where integration
    starts. The value is the mean of the end points. Flow critics have been found to win by their
    integration and the dense supervision of the velocity, not by modelling a law (arXiv 2603.04333,
    abstract; the method is floq). floq draws its start uniformly over the range of values and takes
    eight steps; that is from memory. Here the start is N(0, 1) and the solver that of `Flow`, whose
    draws of noise and time the loss repeats, so that nothing but target and reading differ.

    Attributes:
      head, num_samples, num_steps, solver, first_step, value_bound: as in `Flow`.
      num_noises: noise quantiles, over whose end points the value is the mean.

    Raises:
      ValueError: a value outside its range, named with what is allowed.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (ANCHOR,)
    head: ValueFlowConfig = field(default_factory=ValueFlowConfig)
    num_samples: int = 8
    num_steps: int = 4
    solver: str = "midpoint"
    first_step: float = 2.0
    value_bound: float = 0.0
    num_noises: int = 8

    def __post_init__(self):
        """Check ranges and names."""
        check_interval(self, "num_noises", low=3)
        self._flow()  # which checks what they have in common

    def _flow(self) -> Flow:
        """The flow critic with flow matching to target samples alone."""
        return Flow(
            head=self.head,
            num_samples=self.num_samples,
            num_steps=self.num_steps,
            solver=self.solver,
            first_step=self.first_step,
            value_bound=self.value_bound,
            num_quantiles=self.num_noises,
            inference="ode",
            dcfm_weight=0.0,
            geometry_weight=0.0,
        )

    def build(self) -> Critic:
        """The critic; its reading is a `FlowReading`."""
        config = self._flow()
        flow = config.build()

        def law(reading):
            return jnp.mean(flow.law(reading), axis=-1, keepdims=True)

        def returns(key, reading, steps, lambda_):
            del key
            values = law(reading)
            # Not by GAE: advantage plus value would round off where values are large.
            found = ops.lambda_average(
                steps.rewards,
                values[:, :-1],
                steps.mask,
                discount=steps.discount,
                lambda_=lambda_,
                final_values=ops.final_values(values, steps.mask, steps.bootstrap),
            )
            return config.reader.clipped(found)

        def targets(key, reading, steps, lambda_):
            goals = returns(key, reading, steps, lambda_)
            return FlowTargets(
                samples=jnp.broadcast_to(goals, (*steps.mask.shape, self.num_samples)),
                condition=reading.condition,
                steps=steps,
                has_successor=steps.mask,
                weight=jnp.ones_like(steps.mask),
            )

        return flow._replace(law=law, returns=returns, targets=targets, gives=frozenset({"value"}))
