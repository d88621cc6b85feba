"""What is read from a value flow: functions of a velocity (z, t, d), which know no network.

The field v(z, t, d | s) transports noise z ~ N(0, 1) at t = 0 to the return Z(s) at t = 1 along
dz/dt = v(z, t, 0 | s); v(z, 0, 1 | s) is the jump over the whole horizon (the flow map).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from dfpo_jax import ops
from dfpo_jax.critics.units import AFFINE, Units
from dfpo_jax.models.value_flow import Velocity
from dfpo_jax.types import Array

_AT_ONCE = 4  # noises
INFERENCE = ("one_step", "ode", "euler")


def noise_grid(shape: tuple[int, ...], num: int) -> Array:
    """Noise quantiles Phi^-1((j - 1/2) / num), j = 1..num, for every token: [*shape, num]."""
    grid = ops.noise_quantiles(num).reshape((1,) * len(shape) + (num,))
    return jnp.broadcast_to(grid, (*shape, num))


def one_step(velocity: Velocity, noise: Array) -> Array:
    """The flow map z_1 = noise + v(noise, 0, 1), [..., S] -> [..., S]: one evaluation."""
    zero = jnp.zeros((), noise.dtype)
    return noise + velocity(noise, zero, zero + 1)


def euler_step(velocity: Velocity, noise: Array) -> Array:
    """noise + v(noise, 0, 0), [..., S] -> [..., S]: one Euler step of the instantaneous field.

    Its mean over N(0, 1) is the mean of the return, since the field at t = 0 is E[Z | noise] -
    noise. It is no sample of the return: without a coupling every noise gives the mean itself
    (Value Flows, arXiv 2510.07650).
    """
    zero = jnp.zeros((), noise.dtype)
    return noise + velocity(noise, zero, zero)


def solve(
    velocity: Velocity,
    noise: Array,
    *,
    num_steps: int = 4,
    solver: str = "midpoint",
    first_step: float = 1.0,
    clip: tuple[float, float] | None = None,
) -> Array:
    """z_1 [..., S] of the flow from `noise` [..., S] by `num_steps` solver steps.

    With noise ~ N(0, 1) they are samples of Z(s); with a grid of noise quantiles, its quantiles.
    `first_step` and `clip` are those of `ops.integrate`.
    """
    options = dict(num_steps=num_steps, solver=solver, first_step=first_step, clip=clip)
    return ops.integrate(ops.instantaneous(velocity), noise, **options)


@dataclass(frozen=True)
class Reader:
    """How a flow is read.

    Attributes:
      inference: "one_step" reads the flow map, "ode" integrates, "euler" integrates for samples,
        and reads the value by one Euler step.
      num_steps, solver, first_step: of the integration.
      clip: the interval that states of the flow are clipped to, or None.
      units: those of the flow's states, beside value units.
    """

    inference: str = "one_step"
    num_steps: int = 4
    solver: str = "midpoint"
    first_step: float = 2.0
    clip: tuple[float, float] | None = None
    units: Units = AFFINE

    def samples(self, velocity: Velocity, noise: Array) -> Array:
        """Samples (or quantiles, of an ordered grid of noise) by the chosen inference, of returns.

        In value units; all that `integrated`, `spread` and `paths` give is in units of the flow.
        """
        if self.inference == "one_step":
            return self.clipped(self.units.back(one_step(velocity, noise)))
        return self.units.back(self.integrated(velocity, noise))

    def clipped(self, values: Array) -> Array:
        """Returns, in value units, within the interval."""
        return values if self.clip is None else jnp.clip(values, *map(self.units.back, self.clip))

    def integrated(self, velocity: Velocity, noise: Array) -> Array:
        """z_1 by the solver's steps, whatever the inference."""
        return solve(velocity, noise, **self.steps)

    @property
    def steps(self) -> dict:
        """The keywords of `solve`."""
        return {
            "num_steps": self.num_steps,
            "solver": self.solver,
            "first_step": self.first_step,
            "clip": self.clip,
        }

    def quantiles(self, velocity: Velocity, shape: tuple[int, int], num: int) -> Array:
        """Quantiles [*shape, num] of the return at every state, sorted.

        Paths of an exact one-dimensional flow cannot cross, so its end points are in order; those
        of few solver steps may cross, hence the sort. They are evaluated a few at a time: `num`
        times the activations of every state would be the largest arrays of preparation.
        """
        size = next(n for n in range(_AT_ONCE, 0, -1) if num % n == 0)
        noise = jnp.moveaxis(noise_grid(shape, num).reshape(*shape, -1, size), -2, 0)
        found = jax.lax.map(lambda piece: self.samples(velocity, piece), noise)
        return jnp.sort(jnp.moveaxis(found, 0, -2).reshape(*shape, num), axis=-1)

    def law(self, velocity: Velocity, shape: tuple[int, int], num: int) -> Array:
        """`quantiles`; with "euler" the mean [*shape, 1] of one Euler step from `num` noises."""
        if self.inference != "euler":
            return self.quantiles(velocity, shape, num)
        values = self.clipped(euler_step(velocity, noise_grid(shape, num)))
        return jnp.mean(values, axis=-1, keepdims=True)

    def spread(self, velocity: Velocity, shape: tuple[int, int], num: int) -> Array:
        """sigma_hat = mean_s |dz_1/deps| by the solver's steps: [B, T] (algorithm section 5.5)."""
        _, tangent = ops.integrate_with_tangent(
            ops.instantaneous(velocity), noise_grid(shape, num), **self.steps
        )
        return jnp.mean(jnp.abs(tangent), axis=-1)

    def paths(self, velocity: Velocity, shape: tuple[int, int], num: int) -> Array:
        """Positions [17, *shape, num] of the flow at 17 times from 0 to 1."""
        return ops.trajectory(
            ops.instantaneous(velocity), noise_grid(shape, num), num_steps=16, solver=self.solver
        )
