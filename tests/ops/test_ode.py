"""ODE solvers against closed forms, finite differences, plain loops and diffrax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_critic as reference

from dfpo_jax import ops

LEVELS = (np.arange(32) + 0.5) / 32
NOISE_QUANTILES = np.array([reference.NORMAL.inv_cdf(u) for u in LEVELS])
SOLVERS = sorted(ops.SOLVERS)


def riccati(z, t):
    """dz/dt = -2 t z^2, solved by z0 / (1 + z0 t^2): neither linear nor autonomous."""
    return -2.0 * t * z * z


def wavy(z, t):
    return jnp.sin(2.0 * z) + t * jnp.cos(z)


@pytest.mark.parametrize("solver", SOLVERS)
def test_observed_order_of_state_and_tangent(solver):
    with jax.enable_x64(True):
        z0 = jnp.array([0.4, 0.9, 1.6])
        horizon = jnp.array([1.2, 0.7, 1.0])
        exact = z0 / (1 + z0 * horizon**2)
        exact_tangent = 1 / (1 + z0 * horizon**2) ** 2
        errors = []
        for num_steps in (16, 32):
            solve = jax.jit(
                lambda z, t, n=num_steps: ops.integrate_with_tangent(
                    riccati, z, 0.0, t, num_steps=n, solver=solver
                )
            )
            z1, tangent = solve(z0, horizon)
            assert z1.dtype == tangent.dtype == jnp.float64
            errors.append([jnp.abs(z1 - exact).max(), jnp.abs(tangent - exact_tangent).max()])
        order = np.log2(np.array(errors[0]) / np.array(errors[1]))
    expected = ops.SOLVERS[solver].order
    np.testing.assert_allclose(order, expected, atol=0.3)


@pytest.mark.parametrize("solver", SOLVERS)
def test_matches_written_out_methods(solver, variant):
    rng = np.random.default_rng(0)
    z0 = rng.normal(size=(2, 3)).astype(np.float32)
    t0 = rng.uniform(0, 0.4, size=(2, 1)).astype(np.float32)
    t1 = rng.uniform(0.5, 1, size=(2, 3)).astype(np.float32)
    t1[0, 0] = t0[0, 0]
    solve = variant(lambda z, a, b: ops.integrate(wavy, z, a, b, num_steps=3, solver=solver))
    got = solve(jnp.asarray(z0), jnp.asarray(t0), jnp.asarray(t1))

    def plain(z, t):
        return np.sin(2 * z) + t * np.cos(z)

    for b in range(2):
        for s in range(3):
            start, stop = float(t0[b, 0]), float(t1[b, s])
            want = reference.runge_kutta(plain, float(z0[b, s]), start, stop, 3, solver)
            np.testing.assert_allclose(got[b, s], want, rtol=2e-6, atol=2e-6)
    assert got[0, 0] == z0[0, 0]  # an empty horizon returns the start


@pytest.mark.parametrize(
    "solver,name", [("euler", "Euler"), ("midpoint", "Midpoint"), ("heun", "Heun")]
)
def test_matches_diffrax(solver, name):
    diffrax = pytest.importorskip("diffrax")
    z0 = jnp.linspace(-2.0, 2.0, 7)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, z, args: wavy(z, t)),
        getattr(diffrax, name)(),
        t0=0.0,
        t1=1.0,
        dt0=0.125,
        y0=z0,
        stepsize_controller=diffrax.ConstantStepSize(),
    )
    got = ops.integrate(wavy, z0, num_steps=8, solver=solver)
    np.testing.assert_allclose(got, solution.ys[-1], rtol=1e-6, atol=1e-6)


def test_time_is_scalar_unless_an_end_is_an_array():
    z0 = jnp.array([0.3, -0.6, 1.1])
    shapes = []

    def field(z, t):
        shapes.append(jnp.shape(t))
        return wavy(z, t)

    scalar = ops.integrate(field, z0, num_steps=3, solver="rk4")
    assert set(shapes) == {()}
    shapes.clear()
    array = ops.integrate(field, z0, 0.0, jnp.ones(3), num_steps=3, solver="rk4")
    assert set(shapes) == {(3,)}
    np.testing.assert_allclose(scalar, array, rtol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
def test_tangent_matches_finite_differences_with_clipping(solver, variant):
    with jax.enable_x64(True):
        z0 = jnp.linspace(-1.5, 1.5, 12)

        def field(z, t):
            return 1.5 * jnp.sin(2.0 * z) + t

        @jax.jit
        def solve(z):
            return ops.integrate(field, z, num_steps=5, solver=solver, clip=(-0.9, 1.1))

        z1, tangent = variant(
            lambda z: ops.integrate_with_tangent(
                field, z, num_steps=5, solver=solver, clip=(-0.9, 1.1)
            )
        )(z0)
        step = 1e-6
        slope = (solve(z0 + step) - solve(z0 - step)) / (2 * step)
        np.testing.assert_allclose(z1, solve(z0), rtol=1e-12)
        np.testing.assert_allclose(tangent, slope, rtol=1e-7, atol=1e-8)
    clipped = np.asarray(tangent) == 0
    assert 0 < clipped.sum() < clipped.size
    assert np.all(np.asarray(z1) <= 1.1) and np.all(np.asarray(z1) >= -0.9)


def test_clipped_tangent_closed_form(variant):
    """Euler on dz/dt = z: (1 + h)^K, or 0 for an element that met a bound on the way."""
    z0 = jnp.array([0.1, 0.5, 1.0, -0.2, -3.0])
    solve = variant(
        lambda z: ops.integrate_with_tangent(
            lambda z, t: z, z, num_steps=4, solver="euler", clip=(-2.0, 2.0)
        )
    )
    z1, tangent = solve(z0)
    growth = 1.25**4
    np.testing.assert_allclose(
        z1, [0.1 * growth, 0.5 * growth, 2.0, -0.2 * growth, -2.0], rtol=1e-6
    )
    np.testing.assert_allclose(tangent, [growth, growth, 0.0, growth, 0.0], rtol=1e-6)


def test_clipping_acts_in_each_step_not_only_at_the_end():
    """Up into the bound for half the time, then down: the end depends on the bound met before."""

    def field(z, t):
        return jnp.where(t < 0.5, 4.0, -1.0) + 0.0 * z

    z1, tangent = ops.integrate_with_tangent(
        field, jnp.zeros(1), num_steps=4, solver="euler", clip=(-1.0, 1.0)
    )
    np.testing.assert_allclose(z1, [0.5], rtol=1e-6)
    assert tangent[0] == 0.0


def test_gaussian_to_gaussian_flow_gives_analytic_quantiles():
    mean, std = 0.7, 0.4
    solve = jax.jit(
        lambda z: ops.integrate_with_tangent(
            lambda z, t: reference.gaussian_field(z, t, mean, std), z, num_steps=64, solver="rk4"
        )
    )
    z1, tangent = solve(jnp.asarray(NOISE_QUANTILES, jnp.float32))
    np.testing.assert_allclose(z1, mean + std * NOISE_QUANTILES, atol=1e-5)
    np.testing.assert_allclose(tangent, np.full(32, std), atol=1e-5)


def two_point_field(z, t, low, high, share):
    """Optimal field to {low, high}: (E[y | z_t] - z_t) / (1 - t), P(high) = share."""
    log_odds = jnp.log(share / (1 - share)) + ((z - t * low) ** 2 - (z - t * high) ** 2) / (
        2 * (1 - t) ** 2
    )
    return (low + (high - low) * jax.nn.sigmoid(log_odds) - z) / (1 - t)


@pytest.mark.parametrize("law", ["gaussian", "two_point"])
def test_one_euler_step_collapses_to_the_mean_and_many_steps_do_not(law):
    """With an independent coupling v*(eps, 0) = E[Z] - eps, whatever the law of Z."""
    noise = jnp.asarray(NOISE_QUANTILES, jnp.float32)
    if law == "gaussian":
        mean, quantiles = 0.7, 0.7 + 0.4 * NOISE_QUANTILES
        field = functools.partial(reference.gaussian_field, mean=0.7, std=0.4)
    else:
        low, high, share = -1.0, 1.0, 0.25
        mean, quantiles = -0.5, np.where(LEVELS < 1 - share, low, high)
        field = functools.partial(two_point_field, low=low, high=high, share=share)
    one_step = ops.integrate(field, noise, num_steps=1, solver="euler")
    np.testing.assert_allclose(one_step, np.full(32, mean), atol=1e-5)
    distances = []
    for num_steps in (4, 16, 64):
        many = ops.integrate(field, noise, num_steps=num_steps, solver="midpoint")
        # A quantile index: order is kept, except where the field's slope times the step exceeds 1,
        # as it does near an atom (the two-point field is singular at t = 1).
        assert law == "two_point" or np.all(np.diff(many) > 0)
        distances.append(np.abs(np.asarray(many) - quantiles).mean())
    spread = np.abs(quantiles - mean).mean()
    assert distances[0] < 0.2 * spread
    assert distances[2] < distances[1] < distances[0]
    assert distances[2] < 0.02 * spread


def test_trajectory_holds_every_state(variant):
    z0 = jnp.array([[0.4, -0.3, 1.0]])
    options = dict(num_steps=5, solver="heun", clip=(-0.5, 1.2))
    path = variant(lambda z: ops.trajectory(wavy, z, 0.1, 0.8, **options))(z0)
    assert path.shape == (6, 1, 3)
    np.testing.assert_array_equal(path[0], z0)
    end = ops.integrate(wavy, z0, 0.1, 0.8, **options)
    np.testing.assert_allclose(path[-1], end, rtol=1e-6)
    part = ops.integrate(
        wavy, z0, 0.1, 0.1 + 0.7 * 2 / 5, num_steps=2, solver="heun", clip=(-0.5, 1.2)
    )
    np.testing.assert_allclose(path[2], part, rtol=1e-5)


def test_reverse_mode_reaches_the_parameters_of_the_field(variant):
    """z1 = z0 (1 + a h)^K for Euler on dz/dt = a z, so dz1/da = z0 K h (1 + a h)^(K-1)."""

    def end(rate, z0):
        return ops.integrate(lambda z, t: rate * z, z0, num_steps=4, solver="euler").sum()

    gradient = variant(jax.grad(end))(jnp.float32(0.3), jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(gradient, 3.0 * (1 + 0.3 / 4) ** 3, rtol=1e-5)


def test_a_longer_first_step(variant):
    """Steps of 2/5, 1/5, 1/5, 1/5 of each element's horizon, written out for Euler."""
    z0, horizon = np.array([0.4, -0.3]), np.array([1.0, 0.6])
    solve = variant(
        lambda z, t: ops.trajectory(wavy, z, 0.0, t, num_steps=4, solver="euler", first_step=2.0)
    )
    path = solve(jnp.asarray(z0, jnp.float32), jnp.asarray(horizon, jnp.float32))
    z, t = z0, 0.0 * horizon
    for state, share in zip(path[1:], (0.4, 0.2, 0.2, 0.2), strict=True):
        z = z + share * horizon * (np.sin(2 * z) + t * np.cos(z))
        t = t + share * horizon
        np.testing.assert_allclose(state, z, rtol=1e-5)


def test_a_longer_first_step_suits_two_peaks():
    noise = jnp.asarray(NOISE_QUANTILES, jnp.float32)
    field = functools.partial(two_point_field, low=-1.0, high=1.0, share=0.5)
    truth = np.where(LEVELS < 0.5, -1.0, 1.0)
    distances = [
        np.abs(
            np.asarray(ops.integrate(field, noise, num_steps=4, first_step=first)) - truth
        ).mean()
        for first in (1.0, 2.0)
    ]
    assert distances[1] < 0.8 * distances[0]


@pytest.mark.parametrize(
    "options,message",
    [
        (dict(num_steps=0), "num_steps is 0"),
        (dict(num_steps=2.0), "num_steps is 2.0"),
        (dict(num_steps=2, solver="rk5"), "solver is 'rk5'; allowed: euler, heun, midpoint, rk4"),
        (dict(num_steps=2, first_step=0.0), "first_step is 0.0"),
        (dict(num_steps=2, clip=(1.0, -1.0)), "clip is"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        ops.integrate(wavy, jnp.zeros(2), **options)


def test_integer_state_is_refused():
    with pytest.raises(AssertionError):
        ops.integrate(wavy, jnp.zeros(2, jnp.int32), num_steps=1)
