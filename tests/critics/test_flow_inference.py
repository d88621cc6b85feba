"""What is read from a velocity, on fields with known answers."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scipy.stats import norm
from tiny import widening

from dfpo_jax import ops
from dfpo_jax.critics.flow_inference import Reader, noise_grid, one_step, solve

MU, SIGMA = 0.7, 0.4
BATCH, TIME = 6, 4
EXACT = {"num_steps": 20, "solver": "rk4"}


def gaussian(z, t, d):
    """Field that carries N(0, 1) to N(MU, SIGMA^2); d = 1: its flow map.

    With z_t = (1 - t) eps + t y and eps, y independent, E[y - eps | z_t] is linear in z_t.
    """
    variance = (1 - t) ** 2 + (t * SIGMA) ** 2
    field = MU + (t * SIGMA**2 - (1 - t)) / variance * (z - t * MU)
    return (1 - d) * field + d * (MU + (SIGMA - 1) * z)


def test_noise_grid_holds_normal_quantiles():
    grid = noise_grid((2, 3), 5)
    expected = np.broadcast_to(norm.ppf((np.arange(5) + 0.5) / 5), (2, 3, 5))
    np.testing.assert_allclose(grid, expected, atol=1e-6)


def test_samples_follow_the_field(variant):
    noise = noise_grid((2, 3), 7)
    out = variant(lambda noise: solve(gaussian, noise, **EXACT))(noise)
    np.testing.assert_allclose(out, MU + SIGMA * noise, atol=1e-4)


@pytest.mark.parametrize("inference", ["ode", "one_step"])
def test_quantiles_are_those_of_the_distribution(variant, inference):
    reader = Reader(inference, **EXACT, first_step=1.0)
    out = variant(lambda: reader.quantiles(gaussian, (2, 3), 9))()
    expected = norm.ppf((np.arange(9) + 0.5) / 9, loc=MU, scale=SIGMA)
    np.testing.assert_allclose(out, np.broadcast_to(expected, (2, 3, 9)), atol=1e-4)


def test_quantiles_are_sorted_even_where_steps_cross():
    def steep(z, t, d):
        return -3.0 * z

    crossed = solve(steep, noise_grid((2, 1), 5), num_steps=1, solver="euler")
    assert np.all(np.diff(crossed, axis=-1) < 0)
    for inference in ("ode", "one_step"):
        reader = Reader(inference, num_steps=1, solver="euler")
        out = reader.quantiles(steep, (2, 1), 5)
        np.testing.assert_allclose(out, np.sort(crossed, axis=-1))


def test_one_step_is_the_flow_map_while_one_euler_step_has_no_spread(variant):
    noise = noise_grid((2, 3), 7)
    np.testing.assert_allclose(
        variant(lambda noise: one_step(gaussian, noise))(noise), MU + SIGMA * noise, atol=1e-5
    )
    collapsed = solve(gaussian, noise, num_steps=1, solver="euler")
    np.testing.assert_allclose(collapsed, np.full(noise.shape, MU), atol=1e-5)


def test_readings_evaluate_the_instantaneous_field_or_the_map():
    seen = []

    def spy(z, t, d):
        seen.append((np.unique(t).tolist(), np.unique(d).tolist()))
        return jnp.zeros_like(z)

    noise = noise_grid((1,), 3)
    one_step(spy, noise)
    assert seen == [([0.0], [1.0])]
    # Inside the solver the steps cannot be seen: with any other d they would come out elsewhere.
    moved = solve(lambda z, t, d: jnp.where(d == 0.0, 1.0, 100.0) + 0 * z, noise)
    np.testing.assert_allclose(moved, noise + 1.0, rtol=1e-6)


def test_inference_reads_the_map_or_integrates(variant):
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(BATCH, TIME, 5)).astype(np.float32)
    velocity = widening(np.zeros((BATCH, TIME), np.float32))
    for inference, factor in [
        ("one_step", math.exp(tiny.SLOPE)),
        ("ode", (1 + tiny.SLOPE / 3) ** 3),
    ]:
        reader = Reader(inference, num_steps=3, solver="euler", first_step=1.0)
        out = variant(lambda z, r=reader: r.samples(velocity, z))(noise)
        np.testing.assert_allclose(out, factor * noise, rtol=1e-5)
        integrated = variant(lambda z, r=reader: r.integrated(velocity, z))(noise)
        np.testing.assert_allclose(integrated, (1 + tiny.SLOPE / 3) ** 3 * noise, rtol=1e-5)


@pytest.mark.parametrize("inference", ["one_step", "ode"])
def test_an_interval_holds_for_samples_and_for_solver_states(inference):
    noise = np.random.default_rng(0).normal(size=(BATCH, TIME, 4)).astype(np.float32)
    reader = Reader(inference, clip=(-2.0, 2.0))
    out = np.asarray(reader.samples(lambda z, t, d: 50.0 * z, noise))
    assert np.abs(out).max() == 2.0
    np.testing.assert_array_equal(reader.clipped(100 * noise), np.clip(100 * noise, -2.0, 2.0))
    np.testing.assert_array_equal(Reader(inference).clipped(100 * noise), 100 * noise)


def test_spread_is_the_mean_derivative_of_the_flow():
    reader = Reader(num_steps=3, solver="euler", first_step=1.0)

    def velocity(z, t, d):  # the derivative differs from point to point
        return jnp.sin(2.0 * z) - z

    out = reader.spread(velocity, (2, 3), 7)
    step, slopes = 1e-3, []
    for start in np.asarray(ops.noise_quantiles(7), float):
        ends = []
        for z in (start - step, start + step):
            for _ in range(3):
                z = z + (math.sin(2 * z) - z) / 3
            ends.append(z)
        slopes.append(abs(ends[1] - ends[0]) / (2 * step))
    np.testing.assert_allclose(out, np.full((2, 3), np.mean(slopes)), rtol=1e-3)


def test_paths_run_from_the_noise_to_the_distribution():
    paths = Reader(solver="rk4").paths(gaussian, (2, 3), 5)
    assert paths.shape == (17, 2, 3, 5)
    grid = noise_grid((2, 3), 5)
    np.testing.assert_allclose(paths[0], grid, atol=1e-6)
    np.testing.assert_allclose(paths[-1], MU + SIGMA * grid, atol=1e-4)
    # Half of the way there is N(MU / 2, ((1 - 1/2)^2 + (SIGMA / 2)^2)).
    middle = MU / 2 + math.sqrt(0.25 + (SIGMA / 2) ** 2) * grid
    np.testing.assert_allclose(paths[8], middle, atol=1e-4)
