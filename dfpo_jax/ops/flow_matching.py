"""Losses of the value flow: anchor, distributional flow matching, geometric consistency.

A velocity is a function `velocity(z, t, d)` of points z [B, T, S], virtual time t in [0, 1] and
step length d in [0, 1] (0 for the instantaneous field, 1 for the jump over the whole horizon). It
returns [B, T, S]; t is a scalar or has z's shape, and d is a scalar. At t = 0 z is noise, N(0, 1);
at t = 1 it is the return. Losses are [B, T], averaged over the S pairs of noise and time, without
a mask.
"""

from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp

from dfpo_jax.ops import ode
from dfpo_jax.ops.checks import check, check_choice, check_positive, check_unit_interval

Array = chex.Array
Velocity = Callable[[Array, Array, Array], Array]

CFM_BASES = ("keep", "shift")
GEOMETRY_MODES = ("map", "reflow", "straight")
UNCERTAINTY_MODES = ("none", "emphasize", "discount", "coefficient_of_variation")


def instantaneous(velocity: Velocity) -> ode.Field:
    """The field dz/dt = velocity(z, t, 0), which `integrate` and `trajectory` take."""
    return lambda z, t: velocity(z, t, jnp.zeros((), z.dtype))


def stratified_times(key: Array, shape: Sequence[int]) -> Array:
    """Times t_s = (s + U) / S along the last axis, U ~ Uniform[0, 1): one in each equal stratum.

    Each time is uniform in its stratum, and the mean over s has variance 1/(12 S^3) instead of
    1/(12 S). Ours.

    Args:
      key: PRNG key.
      shape: [..., S], at least one axis.

    Returns:
      float32 of `shape`, increasing along the last axis.

    Raises:
      ValueError: `shape` is empty.
    """
    if len(shape) == 0:
        raise ValueError("shape is (); allowed: at least one axis, the last one is stratified")
    strata = jnp.broadcast_to(jnp.arange(shape[-1], dtype=jnp.float32), shape)
    return (strata + jax.random.uniform(key, shape)) / shape[-1]


def anchor_loss(velocity: Velocity, targets: Array, noise: Array, times: Array) -> Array:
    """Bootstrapped anchor: conditional flow matching on target return samples.

        z_t = (1 - t) eps + t y,   mean_s |velocity(z_t, t, 0) - (y - eps)|^2

    If eps is independent of y, the minimiser transports N(0, 1) to the law of y. Flow matching:
    arXiv 2210.02747, section 4; as a regulariser of a value flow: arXiv 2510.07650.

    Args:
      velocity: field being trained.
      targets: [B, T, S] samples y of the return, stopped.
      noise: [B, T, S] samples eps of N(0, 1), independent of `targets`.
      times: [B, T, S] in [0, 1].

    Returns:
      [B, T], mean over S.
    """
    chex.assert_rank(targets, 3)
    chex.assert_equal_shape([targets, noise, times])
    targets, noise, times = jax.lax.stop_gradient((targets, noise, times))
    points = (1.0 - times) * noise + times * targets
    error = instantaneous(velocity)(points, times) - (targets - noise)
    return jnp.mean(jnp.square(error), axis=-1)


def distributional_cfm_loss(
    velocity: Velocity,
    next_velocity: Velocity,
    rewards: Array,
    noise: Array,
    times: Array,
    *,
    discount: float = 1.0,
    num_steps: int = 4,
    solver: str = "midpoint",
    clip: tuple[float, float] | None = None,
    base: str = "keep",
) -> Array:
    """Distributional conditional flow matching between successive states.

    Let z'_t be the old field's state at time t, started from eps in the successor state, and
    vbar its velocity there. The loss is mean_s |velocity(z_t, t, 0) - u|^2 with

        "keep":   z_t = t r + discount z'_t + (1 - discount)(1 - t) eps,
                  u   = r + discount vbar - (1 - discount) eps
        "shift":  z_t = r + discount z'_t,   u = discount vbar

    Both u are dz_t/dt, and both paths end at r + discount z'_1. "keep" starts at t = 0 from
    N(0, 1), the noise that the critic is sampled from. "shift" starts from N(r, discount^2), so a
    sample started from N(0, 1) is wrong by r unless rewards are 0; it is kept for comparison.
    Distributional flow matching: Value Flows, arXiv 2510.07650; "keep" is ours.

    Args:
      velocity: field being trained, at the states before tokens i.
      next_velocity: the old critic's field at the states after tokens i, stopped.
      rewards: [B, T] rewards r in the critic's units, stopped.
      noise: [B, T, S] samples eps of N(0, 1).
      times: [B, T, S] in [0, 1].
      discount: in [0, 1].
      num_steps: steps of the integration from 0 to each t.
      solver: a key of `ode.SOLVERS`.
      clip: as in `ode.integrate`.
      base: "keep" or "shift".

    Returns:
      [B, T], mean over S. The last valid token has no successor, so the caller must mask it.

    Raises:
      ValueError: `base`, `discount`, `num_steps` or `solver` is not allowed.
    """
    check_choice("base", base, CFM_BASES)
    check_unit_interval("discount", discount)
    chex.assert_rank([rewards, noise], [2, 3])
    chex.assert_equal_shape([noise, times])
    chex.assert_equal_shape_prefix([rewards, noise], 2)
    rewards, noise, times = jax.lax.stop_gradient((rewards, noise, times))
    field = instantaneous(next_velocity)
    options = dict(num_steps=num_steps, solver=solver, clip=clip)
    after = ode.integrate(field, noise, 0.0, times, **options)
    after, slope = jax.lax.stop_gradient((after, field(after, times)))
    reward = rewards[..., None]
    if base == "keep":
        points = times * reward + discount * after + (1.0 - discount) * (1.0 - times) * noise
        target = reward + discount * slope - (1.0 - discount) * noise
    else:
        points = reward + discount * after
        target = discount * slope
    error = instantaneous(velocity)(points, times) - target
    return jnp.mean(jnp.square(error), axis=-1)


def geometric_consistency_loss(
    velocity: Velocity,
    old_velocity: Velocity,
    noise: Array,
    times: Array,
    *,
    mode: str = "map",
    num_steps: int = 4,
    solver: str = "midpoint",
    first_step: float = 1.0,
    clip: tuple[float, float] | None = None,
) -> Array:
    """Consistency of one-step inference with the old field's trajectories.

    Let z_t be the old field's state at time t, started from eps; its gradient is stopped.

        "map":      |velocity(eps, 0, 1) - (z_1 - eps)|^2
        "reflow":   `anchor_loss` on the pairs (eps, z_1): straight paths under the monotone
                    coupling (rectified flow, arXiv 2209.03003)
        "straight": |velocity(eps, 0, 0) - stop(velocity(z_t, t, 0))|^2

    In "straight" both velocities come from the field being trained, and only the one at t = 0 has a
    gradient. Its minimiser is the mean velocity along the trajectory, the displacement z_1 - eps,
    which does not change the law at t = 1. A gradient through the later velocity would instead pull
    every sample to the mean, since the first one is E[Z] - eps at the optimum of the anchor.
    "map" trains a velocity conditioned on the step length, as in shortcut models, arXiv 2410.12557,
    distilled here from quantile to quantile.

    Args:
      velocity: field being trained.
      old_velocity: the old critic's field at the same states, stopped.
      noise: [B, T, S] samples eps of N(0, 1).
      times: [B, T, S] in [0, 1]; unused by "map".
      mode: "map", "reflow" or "straight".
      num_steps: steps of the old field's integration.
      solver: a key of `ode.SOLVERS`.
      first_step, clip: as in `ode.integrate`.

    Returns:
      [B, T], mean over S.

    Raises:
      ValueError: `mode`, `num_steps`, `solver` or `first_step` is not allowed.
    """
    check_choice("mode", mode, GEOMETRY_MODES)
    chex.assert_rank(noise, 3)
    chex.assert_equal_shape([noise, times])
    noise, times = jax.lax.stop_gradient((noise, times))
    horizon = times if mode == "straight" else 1.0
    field = instantaneous(old_velocity)
    options = dict(num_steps=num_steps, solver=solver, first_step=first_step, clip=clip)
    ends = jax.lax.stop_gradient(ode.integrate(field, noise, 0.0, horizon, **options))
    if mode == "reflow":
        return anchor_loss(velocity, ends, noise, times)
    zero = jnp.zeros((), noise.dtype)
    if mode == "map":
        error = velocity(noise, zero, zero + 1) - (ends - noise)
    else:
        later = jax.lax.stop_gradient(velocity(ends, times, zero))
        error = velocity(noise, zero, zero) - later
    return jnp.mean(jnp.square(error), axis=-1)


def uncertainty_weights(
    sigma: Array,
    *,
    mode: str = "none",
    temperature: float = 1.0,
    mean: Array | None = None,
    floor: float = 0.1,
) -> Array:
    """Weights of the flow-matching losses from the spread of the return.

        "none":       1
        "emphasize":  sigmoid(-temperature / sigma) + 1/2, in [1/2, 1): more weight on uncertain
                      states (Value Flows, arXiv 2510.07650)
        "discount":   1 / (1 + (sigma / temperature)^2), in (0, 1]: less weight on them (ours)
        "coefficient_of_variation":
                      the same of sigma / max(|mean|, floor), in (0, 1]: less weight on states whose
                      spread is large beside their mean

    That FlowCritic (arXiv 2510.22686) weights by the coefficient of variation, so that noisy
    samples count less, is known from a third-party summary. The function is not: this one and its
    floor are reconstructed. The coefficient depends on where 0 lies. Value units have it in the
    middle of a known range of rewards, so a state that is as likely to succeed as to fail gets
    almost no weight; so does every state of a new head, whose mean is 0 and spread 1.

    Args:
      sigma: [...] non-negative spread, e.g. the mean over samples of |dz_1/deps| from
        `ode.integrate_with_tangent`; stopped.
      mode: "none", "emphasize", "discount" or "coefficient_of_variation".
      temperature: positive, in the units of sigma; a pure number beside a mean.
      mean: [...] of the same return, in the units of sigma; stopped. Only
        "coefficient_of_variation" reads it, and needs it.
      floor: positive, least size of a mean, in its units.

    Returns:
      Weights of sigma's shape, without gradient.

    Raises:
      ValueError: `mode`, `temperature` or `floor` is not allowed, or the mean is missing.
      AssertionError: mean and sigma have different shapes.
    """
    check_choice("mode", mode, UNCERTAINTY_MODES)
    check_positive("temperature", temperature)
    check_positive("floor", floor)
    sigma = jax.lax.stop_gradient(sigma)
    if mode == "coefficient_of_variation":
        check(mean is not None, "mean", mean, "the mean of the return, which this mode reads")
        chex.assert_equal_shape([sigma, mean])
        sigma = sigma / jnp.maximum(jnp.abs(jax.lax.stop_gradient(mean)), floor)
    if mode == "none":
        return jnp.ones_like(sigma)
    if mode == "emphasize":
        return jax.nn.sigmoid(-temperature / jnp.maximum(sigma, 1e-6)) + 0.5
    return 1.0 / (1.0 + jnp.square(sigma / temperature))
