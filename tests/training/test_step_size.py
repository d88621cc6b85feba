"""Steps that shrink with the effective sample size."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import tiny

from dfpo_jax import ops
from dfpo_jax.training.config import OptimizerConfig, parse_config
from dfpo_jax.training.optim import make_optimizer
from dfpo_jax.training.step_size import SQUARED, WEIGHT, effective_samples

PARAMS = {"a": jnp.arange(3.0), "b": jnp.ones((2, 2))}
GRADIENT = {"a": jnp.array([1.0, -2.0, 3.0]), "b": jnp.full((2, 2), 0.5)}


def means_of(weights):
    return {WEIGHT: jnp.mean(weights), SQUARED: jnp.mean(jnp.square(weights))}


def updates(means, **options):
    """The updates of an optimizer's first step."""
    optimizer = make_optimizer(OptimizerConfig(**options), 10)
    found, _ = optimizer.update(GRADIENT, optimizer.init(PARAMS), PARAMS, means=means)
    return found


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
@pytest.mark.parametrize(("scaling", "power"), [("sqrt", 0.5), ("linear", 1.0)])
def test_steps_are_scaled_by_a_power_of_the_share(name, scaling, power):
    weights = np.array([0.1, 0.2, 3.0, 0.4], np.float32)
    share = np.mean(weights) ** 2 / np.mean(weights**2)
    assert 0.25 < share < 0.5
    plain = updates({}, name=name)
    found = updates(means_of(weights), name=name, step_scaling=scaling, step_base=0.5)
    for key, x in plain.items():
        np.testing.assert_allclose(found[key], x * (share / 0.5) ** power, rtol=1e-5)


def test_steps_are_whole_from_the_base_on():
    plain, even = updates({}), means_of(np.full(4, 3.0, np.float32))
    found = updates(even, step_scaling="sqrt")
    nearly = updates(means_of(np.array([1.0, 1.5])), step_scaling="sqrt", step_base=0.9)
    for key, x in plain.items():
        np.testing.assert_allclose(found[key], x, rtol=1e-6)
        np.testing.assert_allclose(nearly[key], x, rtol=1e-6)


@pytest.mark.parametrize("log_weights", [[0.0] * 5, [0.0, -40.0, -40.0], [0.3, -1.2, 0.7, 2.0]])
def test_the_share_of_the_means_is_that_of_the_op(log_weights):
    weights = np.exp(np.array(log_weights))
    expected = float(ops.effective_sample_size(np.array(log_weights, np.float32)))
    assert effective_samples(means_of(weights)) == pytest.approx(expected, rel=1e-5)
    assert 1 / len(weights) <= expected * (1 + 1e-6) <= 1 + 1e-6


@pytest.mark.parametrize("scaling", ["sqrt", "linear"])
def test_without_a_response_that_counts_nothing_moves(scaling):
    nothing = dict.fromkeys((WEIGHT, SQUARED), 0.0)
    assert effective_samples(nothing) == 0.0
    found = updates(means_of(np.zeros(2, np.float32)), step_scaling=scaling)
    for key, x in found.items():
        np.testing.assert_array_equal(x, np.zeros_like(PARAMS[key]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy_optimizer.step_scaling": "cube"}, "step_scaling is 'cube'"),
        ({"policy_optimizer.step_base": 0.5}, "step_base is 0.5; step_scaling is 'none'"),
        ({"policy_optimizer.step_scaling": "sqrt"}, "objective 'clip' does not weigh responses"),
        ({"critic_optimizer.step_scaling": "sqrt"}, "only the policy has importance weights"),
        ({"train.behaviour_lag": 4}, "behaviour_lag is 4; it must be less than iterations, 4"),
        (
            {"train.behaviour_lag": 1, "train.frozen": ("policy",)},
            "one that never changes is not behind itself, so it must be 0",
        ),
        (
            {"train.behaviour_lag": 1, "log_probs.recompute": False},
            "behaviour_lag is 1 and log_probs.recompute False",
        ),
    ],
)
def test_wrong_settings_are_one_line(settings, message):
    config = tiny()
    config.update_from_flattened_dict(settings)
    with pytest.raises(ValueError, match=message) as error:
        parse_config(config)
    assert "\n" not in str(error.value)


def test_an_objective_that_reads_the_sampler_may_scale_steps():
    config = tiny()
    config.objective.name = "divergence"
    config.policy_optimizer.step_scaling = "linear"
    assert parse_config(config).policy_optimizer == dataclasses.replace(
        OptimizerConfig(), step_scaling="linear"
    )
