"""Histograms and projections on atoms against plain loops, rlax and exact invariants."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfpo_jax import ops


@pytest.fixture(autouse=True)
def strict_dtypes():
    with jax.numpy_dtype_promotion("strict"):
        yield


def plain_histogram(sample, edges, sigma):
    """One sample, bin by bin, by the error function."""
    y = min(max(sample, edges[0]), edges[-1])
    phi = [0.5 * (1.0 + math.erf((edge - y) / sigma / math.sqrt(2.0))) for edge in edges]
    total = phi[-1] - phi[0]
    return [(after - before) / total for before, after in zip(phi, phi[1:], strict=False)]


def plain_projection(samples, probabilities, atoms):
    """Sample by sample, to the atoms on both sides of it."""
    out = np.zeros(len(atoms))
    for y, mass in zip(samples, probabilities, strict=True):
        y = min(max(float(y), float(atoms[0])), float(atoms[-1]))
        k = max(i for i in range(len(atoms) - 1) if i == 0 or atoms[i] <= y)
        share = (y - atoms[k]) / (atoms[k + 1] - atoms[k])
        out[k] += mass * (1.0 - share)
        out[k + 1] += mass * share
    return out


@pytest.mark.parametrize("sigma", [0.05, 0.4])
def test_a_sample_becomes_a_gaussian_over_the_bins(variant, sigma):
    edges = np.linspace(-1.0, 1.0, 11, dtype=np.float32)
    samples = np.array([[-3.0, -1.0, -0.37], [0.0, 0.62, 1.7]], np.float32)
    found = variant(ops.gaussian_histogram, static_argnames="sigma")(samples, edges, sigma=sigma)
    expected = [[plain_histogram(y, edges.tolist(), sigma) for y in row] for row in samples]
    np.testing.assert_allclose(found, expected, atol=2e-6)
    np.testing.assert_allclose(found.sum(axis=-1), 1.0, atol=1e-5)


def test_the_mean_is_within_half_a_bin_inside_the_support():
    edges = jnp.linspace(-2.0, 2.0, 102)
    samples = jnp.linspace(-1.5, 1.5, 301)
    mass = ops.gaussian_histogram(samples, edges, sigma=0.75 * 4.0 / 101)
    means = mass @ (0.5 * (edges[1:] + edges[:-1]))
    np.testing.assert_allclose(means, samples, atol=2.0 / 101)


def draws(seed=0):
    """Samples [2, 3, 7], in and out of the atoms' range, some on an atom, and their masses."""
    rng = np.random.default_rng(seed)
    samples = np.round(2 * rng.normal(size=(2, 3, 7)), 1).astype(np.float32)
    mass = rng.uniform(size=samples.shape).astype(np.float32)
    return samples, mass / mass.sum(axis=-1, keepdims=True)


ATOMS = [np.linspace(-2.0, 2.0, 9, dtype=np.float32), np.array([-1.0, 0.0, 0.5, 3.0], np.float32)]


@pytest.mark.parametrize("atoms", ATOMS, ids=["even", "uneven"])
def test_a_projection_equals_a_loop_and_keeps_the_mean(variant, atoms):
    samples, mass = draws()
    found = variant(ops.project_categorical)(samples, mass, atoms)
    for index in np.ndindex(2, 3):
        expected = plain_projection(samples[index], mass[index], atoms)
        np.testing.assert_allclose(found[index], expected, atol=2e-6)
    inside = np.clip(samples, atoms[0], atoms[-1])
    np.testing.assert_allclose(found @ atoms, (inside * mass).sum(axis=-1), atol=1e-5)


@pytest.mark.parametrize("atoms", ATOMS, ids=["even", "uneven"])
def test_a_projection_equals_that_of_rlax(atoms):
    rlax = pytest.importorskip("rlax")
    samples, mass = draws(1)
    found = ops.project_categorical(samples, mass, atoms)
    with jax.numpy_dtype_promotion("standard"):
        theirs = jnp.vectorize(
            lambda y, w: rlax.categorical_l2_project(y, w, jnp.asarray(atoms)),
            signature="(s),(s)->(k)",
        )(samples, mass)
    np.testing.assert_allclose(found, theirs, atol=2e-6)


def test_targets_carry_no_gradient():
    samples, mass = draws()

    def total(samples, mass, line):
        histogram = ops.gaussian_histogram(samples, line, sigma=0.3)
        return histogram[..., 1].sum() + ops.project_categorical(samples, mass, line)[..., 1].sum()

    for gradient in jax.jit(jax.grad(total, argnums=(0, 1, 2)))(samples, mass, ATOMS[0]):
        np.testing.assert_array_equal(gradient, np.zeros(gradient.shape))


Y = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: ops.gaussian_histogram(Y, ATOMS[0], sigma=0.0), "sigma is 0.0; allowed: a pos"),
        (lambda: ops.gaussian_histogram(Y, Y[0, :1], sigma=1.0), "the number of edges is 1; allow"),
        (lambda: ops.project_categorical(Y, Y, Y[0, :1]), "the number of atoms is 1; allowed: at "),
    ],
)
def test_bad_options_are_named(call, said):
    with pytest.raises(ValueError, match=said):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: ops.gaussian_histogram(Y, Y, sigma=1.0),
        lambda: ops.project_categorical(Y, Y[0], ATOMS[0]),
        lambda: ops.project_categorical(Y, Y, Y),
    ],
)
def test_wrong_shapes_are_refused(call):
    with pytest.raises(AssertionError):
        call()
