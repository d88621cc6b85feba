"""The categorical critic: its histogram against a plain loop, and what it learns."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dfpo_jax.critics.categorical import Categorical, smoothed_histogram
from dfpo_jax.types import Steps


def plain_histogram(sample, edges, deviation):
    """One sample, bin by bin, by the error function."""
    y = min(max(sample, edges[0]), edges[-1])
    phi = [0.5 * (1.0 + math.erf((edge - y) / deviation / math.sqrt(2.0))) for edge in edges]
    total = phi[-1] - phi[0]
    return [(after - before) / total for before, after in zip(phi, phi[1:], strict=False)]


@pytest.mark.parametrize("deviation", [0.05, 0.4])
def test_a_sample_becomes_a_gaussian_over_the_bins(deviation):
    edges = np.linspace(-1.0, 1.0, 11)
    samples = np.array([[-3.0, -1.0, -0.37], [0.0, 0.62, 1.7]], np.float32)
    found = smoothed_histogram(jnp.asarray(samples), jnp.asarray(edges, jnp.float32), deviation)
    expected = [[plain_histogram(y, edges, deviation) for y in row] for row in samples.tolist()]
    np.testing.assert_allclose(found, expected, atol=2e-6)
    np.testing.assert_allclose(found.sum(axis=-1), 1.0, atol=1e-5)


def test_the_mean_is_within_half_a_bin_inside_the_support():
    edges = jnp.linspace(-2.0, 2.0, 102)
    samples = jnp.linspace(-1.5, 1.5, 301)
    mass = smoothed_histogram(samples, edges, 0.75 * 4.0 / 101)
    means = mass @ (0.5 * (edges[1:] + edges[:-1]))
    np.testing.assert_allclose(means, samples, atol=2.0 / 101)


def test_quantiles_invert_the_histogram():
    critic = Categorical(num_bins=4, support=2.0, num_quantiles=4).build()
    law = critic.law(jnp.log(jnp.array([[[0.5, 0.0, 0.25, 0.25]]])))
    # Levels 1/8, 3/8, 5/8, 7/8 of mass .5 on [-2, -1], .25 on [0, 1] and .25 on [1, 2].
    np.testing.assert_allclose(law, [[[-1.75, -1.25, 0.5, 1.5]]], atol=1e-6)


def test_a_bimodal_return_is_learned():
    """Returns of -1 and 1 from one state; at lambda 1 nothing is bootstrapped."""
    critic, rows = Categorical(num_bins=21).build(), 256
    params = nn.unbox(critic.init(jax.random.key(0), 3))
    states, rewards = jnp.ones((rows, 2, 3)), jnp.where(jnp.arange(rows) % 4 < 3, 1.0, -1.0)
    steps = Steps(rewards[:, None], jnp.ones((rows, 1)), jnp.zeros(rows, bool))
    optimizer = optax.adam(0.1)

    def update(carry, key):
        params, moments = carry
        targets = critic.targets(key, critic.read(params, states), steps, 1.0)

        def loss(p):
            return critic.losses(p, states, targets, params, key)["loss"].per_token.mean()

        changes, moments = optimizer.update(jax.grad(loss)(params), moments)
        return (optax.apply_updates(params, changes), moments), None

    keys = jax.random.split(jax.random.key(1), 200)
    (params, _), _ = jax.lax.scan(update, (params, optimizer.init(params)), keys)
    law = critic.law(critic.read(params, states))[0, 0]
    np.testing.assert_allclose(jnp.mean(law > 0), 0.75, atol=1 / 32)
    np.testing.assert_allclose(law[law > 0].mean(), 1.0, atol=0.1)
    np.testing.assert_allclose(law[law < 0].mean(), -1.0, atol=0.1)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("num_bins", 1, "num_bins is 1; it must lie in [2, inf]"),
        ("num_quantiles", 2, "num_quantiles is 2"),
        ("support", 0.0, "support is 0.0; it must be finite and above 0"),
        ("smoothing", float("inf"), "smoothing is inf; it must be finite and above 0"),
    ],
)
def test_a_value_outside_its_range_is_named(field, value, said):
    with pytest.raises(ValueError) as error:
        Categorical(**{field: value})
    assert str(error.value).startswith(said)
