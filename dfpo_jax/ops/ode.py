"""Fixed-step explicit Runge-Kutta integration of dz/dt = field(z, t) in `lax.scan`.

The state `z` may have any shape. Each element may have its own horizon: time is then an array of
the shape of `z`. With scalar ends time stays a scalar, which is cheaper to embed.
"""

import numbers
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from dfpo_jax.ops.checks import check, check_choice

Array = chex.Array
Field = Callable[[Array, Array], Array]


class Tableau(NamedTuple):
    """Butcher tableau of an explicit method.

    Stages k_i = f(z + h sum_j a_ij k_j, t + c_i h), step z + h sum_i b_i k_i (Hairer, Norsett and
    Wanner, Solving Ordinary Differential Equations I, section II.1).

    Attributes:
      a: one row of weights per stage; row i has i entries.
      b: weights of the stages in the step.
      c: times of the stages as shares of the step.
      order: order of the global error in the step size.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]
    order: int


SOLVERS: dict[str, Tableau] = {
    "euler": Tableau(a=((),), b=(1.0,), c=(0.0,), order=1),
    "midpoint": Tableau(a=((), (0.5,)), b=(0.0, 1.0), c=(0.0, 0.5), order=2),
    "heun": Tableau(a=((), (1.0,)), b=(0.5, 0.5), c=(0.0, 1.0), order=2),
    "rk4": Tableau(
        a=((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
        b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
        c=(0.0, 0.5, 0.5, 1.0),
        order=4,
    ),
}


def _combine(z: Array, step_size: Array, weights: tuple[float, ...], slopes: list[Array]) -> Array:
    """z + h sum_i w_i k_i, skipping terms of zero weight."""
    terms = [w * k for w, k in zip(weights, slopes, strict=True) if w != 0.0]
    return z + step_size * sum(terms[1:], terms[0]) if terms else z


def _step(field: Field, tableau: Tableau, z: Array, t: Array, step_size: Array) -> Array:
    slopes: list[Array] = []
    for row, share in zip(tableau.a, tableau.c, strict=True):
        slopes.append(field(_combine(z, step_size, row, slopes), t + share * step_size))
    return _combine(z, step_size, tableau.b, slopes)


def _check_options(num_steps, solver, first_step, clip) -> None:
    is_integer = isinstance(num_steps, numbers.Integral) and not isinstance(num_steps, bool)
    check(is_integer and num_steps >= 1, "num_steps", num_steps, "an integer of at least 1")
    check_choice("solver", solver, tuple(sorted(SOLVERS)))
    check(0.0 < first_step < float("inf"), "first_step", first_step, "above 0 and finite")
    is_range = clip is None or (len(clip) == 2 and clip[0] < clip[1])
    check(is_range, "clip", clip, "None or (low, high) with low < high")


def _scan(
    field, z0, t0, t1, num_steps, solver, first_step, clip, keep: bool
) -> tuple[Array, Array | None]:
    """The loop of all public functions: (last state, the states after each step or None)."""
    _check_options(num_steps, solver, first_step, clip)
    z0 = jnp.asarray(z0)
    chex.assert_type(z0, float)
    start, stop = jnp.asarray(t0, z0.dtype), jnp.asarray(t1, z0.dtype)
    if start.ndim or stop.ndim:
        start, stop = jnp.broadcast_to(start, z0.shape), jnp.broadcast_to(stop, z0.shape)
    horizon, total = stop - start, first_step + num_steps - 1
    widths = jnp.full(num_steps, 1.0 / total, z0.dtype).at[0].set(first_step / total)
    begins = jnp.arange(num_steps, dtype=z0.dtype) + (first_step - 1.0)
    begins = begins.at[0].set(0.0) / total

    def body(z: Array, shares: tuple[Array, Array]):
        t, step_size = start + shares[0] * horizon, shares[1] * horizon
        z_next = _step(field, SOLVERS[solver], z, t, step_size).astype(z.dtype)
        if clip is not None:  # lax.clamp: derivative exactly 0 at and beyond the bounds
            z_next = jax.lax.clamp(*(jnp.asarray(x, z.dtype) for x in (clip[0], z_next, clip[1])))
        return z_next, z_next if keep else None

    return jax.lax.scan(body, z0, (begins, widths))


def integrate(
    field: Field,
    z0: Array,
    t0: Array | float = 0.0,
    t1: Array | float = 1.0,
    *,
    num_steps: int,
    solver: str = "midpoint",
    first_step: float = 1.0,
    clip: tuple[float, float] | None = None,
) -> Array:
    """State at `t1` of dz/dt = field(z, t) started from `z0` at `t0`.

    Uses a fixed number of explicit Runge-Kutta steps, all equal except the first. Differentiable in
    forward and reverse mode.

    Args:
      field: velocity; takes z of z0's shape and t, a scalar if t0 and t1 are, else of z0's shape;
        returns z0's shape.
      z0: [...] float, state at t0.
      t0: start time, a scalar or an array that broadcasts to z0's shape.
      t1: end time, likewise; an element with t1 = t0 stays at z0.
      num_steps: number of steps, static, at least 1.
      solver: a key of `SOLVERS`.
      first_step: ratio of the first step's length to that of the others, static. A value flow is
        nearly linear at first and sharp later: with 2, four steps to a law with two peaks have
        half the error.
      clip: bounds (low, high) to which the state is clipped after each step, or None.

    Returns:
      [...] float, of z0's shape and dtype.

    Raises:
      ValueError: `num_steps`, `solver`, `first_step` or `clip` is not allowed.
    """
    return _scan(field, z0, t0, t1, num_steps, solver, first_step, clip, keep=False)[0]


def integrate_with_tangent(
    field: Field,
    z0: Array,
    t0: Array | float = 0.0,
    t1: Array | float = 1.0,
    *,
    num_steps: int,
    solver: str = "midpoint",
    first_step: float = 1.0,
    clip: tuple[float, float] | None = None,
) -> tuple[Array, Array]:
    """State at `t1` and its derivative with respect to `z0`, for fields that act elementwise.

    The derivative is a forward-mode product with ones through `integrate`, so it is exact for the
    discrete steps and for clipping (0 once an element was clipped). If the field mixes elements,
    the result is the row sum of the Jacobian instead.

    Args, errors: as `integrate`.

    Returns:
      (z1, dz1/dz0), both of z0's shape. In a one-dimensional flow without clipping the derivative
      is positive if the steps are small enough, because trajectories keep their order.
    """

    def solve(z: Array) -> Array:
        return integrate(
            field, z, t0, t1, num_steps=num_steps, solver=solver, first_step=first_step, clip=clip
        )

    z0 = jnp.asarray(z0)
    return jax.jvp(solve, (z0,), (jnp.ones_like(z0),))


def trajectory(
    field: Field,
    z0: Array,
    t0: Array | float = 0.0,
    t1: Array | float = 1.0,
    *,
    num_steps: int,
    solver: str = "midpoint",
    first_step: float = 1.0,
    clip: tuple[float, float] | None = None,
) -> Array:
    """All states of `integrate`, [num_steps + 1, ...], from `z0` to the state at `t1`.

    Args, errors: as `integrate`.
    """
    states = _scan(field, z0, t0, t1, num_steps, solver, first_step, clip, keep=True)[1]
    return jnp.concatenate([jnp.asarray(z0)[None], states])
