"""The quantile critic: its quantiles, return samples and loss, against loops."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import reference_critic
import tiny
from critic_states import DISCOUNT, random_states, random_steps, row_keys, successors
from reference_policy import after_last, valid_slots

from dfpo_jax.critics import Quantile

NUM, LAMBDA = 5, 0.8


def make(**settings):
    """The critic, random parameters, and the outputs [B, R + 1, M] at the random states."""
    critic, states = Quantile(NUM, **settings).build(), random_states()
    params = tiny.randomised(critic.init(jax.random.key(0), states.shape[-1]), seed=1)
    return (
        critic,
        params,
        states.astype(float) @ params["output"]["kernel"] + params["output"]["bias"],
    )


def test_quantiles_are_linear_in_the_state_and_sorted():
    critic, params, raw = make()
    found = critic.read(params, random_states())
    np.testing.assert_allclose(found, np.sort(raw, axis=-1), atol=1e-5)
    np.testing.assert_array_equal(critic.law(found), found)
    assert np.any(np.diff(raw, axis=-1) < 0)


def test_mixture_samples_have_the_mean_of_the_lambda_return():
    """Over many draws; every quantile of a state is as likely as any other."""
    critic, _, raw = make()
    quantiles, steps, draws = np.sort(raw, axis=-1).astype(np.float32), random_steps(), 400
    keys = jax.random.split(jax.random.key(0), draws)
    samples = np.asarray(
        jax.jit(jax.vmap(lambda key: critic.returns(key, quantiles, steps, LAMBDA)))(keys)
    )
    values = quantiles.mean(axis=-1)
    end = after_last(values, steps.mask, steps.bootstrap)
    _, expected = reference.gae(steps.rewards, values[:, :-1], steps.mask, DISCOUNT, LAMBDA, end)
    means = samples.mean(axis=-1)  # [draws, B, R]
    error = 5 * means.std(axis=0) / math.sqrt(draws) + 1e-5
    assert np.all(np.abs(means.mean(axis=0) - expected) * steps.mask < error)
    assert np.any(samples[0] != samples[1])


def test_mixture_samples_at_lambda_zero_are_the_next_states_quantiles():
    critic, _, raw = make()
    quantiles, steps = np.sort(raw, axis=-1).astype(np.float32), random_steps()
    found = np.asarray(critic.returns(jax.random.key(0), quantiles, steps, 0.0))
    following = successors(steps.mask)
    for b, row in enumerate(steps.mask):
        slots = valid_slots(row)
        for i in slots:
            ends = i == slots[-1] and not steps.bootstrap[b]
            after = 0.0 if ends else quantiles[b, following[b, i]]
            expected = steps.rewards[b, i] + DISCOUNT * after
            np.testing.assert_allclose(
                np.sort(found[b, i]), np.broadcast_to(expected, NUM), atol=1e-5
            )


def test_average_samples_equal_loops_per_quantile():
    critic, _, raw = make(target_mode="average")
    quantiles, steps = np.sort(raw, axis=-1).astype(np.float32), random_steps()
    found = np.asarray(critic.returns(jax.random.key(0), quantiles, steps, LAMBDA))
    ends = after_last(quantiles, steps.mask, steps.bootstrap)
    for b, q in np.ndindex(len(quantiles), NUM):
        row, slots = steps.mask[b], valid_slots(steps.mask[b])
        expected = reference_critic.gae_returns(
            steps.rewards[b], quantiles[b, :, q], row, DISCOUNT, LAMBDA, ends[b, q]
        )
        np.testing.assert_allclose(found[b, slots, q], expected[slots], atol=1e-5)


@pytest.mark.parametrize("kappa", [0.0, 0.5])
def test_the_loss_equals_a_loop(kappa):
    critic, params, raw = make(kappa=kappa)
    quantiles = np.sort(raw, axis=-1).astype(np.float32)
    rows = critic.targets(jax.random.key(0), jnp.asarray(quantiles), random_steps(), LAMBDA)
    rows = np.asarray(rows)
    assert rows.shape == (*random_steps().mask.shape, NUM)
    moved, states = tiny.randomised(params, 9), random_states(9)
    live = states.astype(float) @ moved["output"]["kernel"] + moved["output"]["bias"]
    (name, loss), *others = critic.losses(moved, states, rows, params, row_keys()).items()
    assert (name, others, loss.mask, loss.weight) == ("loss", [], None, 1.0)
    levels = (np.arange(NUM) + 0.5) / NUM
    # Unsorted: each output belongs to its own level, also where it is out of order.
    assert np.any(np.diff(live, axis=-1) < 0)
    for index in np.ndindex(rows.shape[:2]):
        expected = reference.quantile_huber(live[index], rows[index], levels, kappa)
        np.testing.assert_allclose(loss.per_token[index], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_quantiles": 0}, "num_quantiles is 0"),
        ({"kappa": -0.5}, "kappa is -0.5"),
        ({"num_heads": 0}, "num_heads is 0"),
        ({"levels": "left"}, "levels is 'left'; it must be one of midpoint, right"),
        ({"risk_emphasis": "all"}, "risk_emphasis is 'all'; it must be one of lower, upper, mean"),
        ({"risk_weight": -1.0}, "risk_weight is -1.0"),
        ({"risk_weight": 1.0, "risk_rate": 0.0}, "risk_rate is 0.0; it must be above 0"),
        ({"risk_rate": 2.0}, "risk_rate is 2.0; risk_weight is 0.0, so it must be left at 1.0"),
        ({"tail_alpha": 0.2}, "tail_alpha is 0.2; no loss of the lower tail has a weight"),
        ({"cvar_weight": 1.0, "tail_alpha": 0.0}, "tail_alpha is 0.0; it must be above 0"),
        ({"cvar_weight": 1.0, "tail_alpha": 1.5}, "tail_alpha is 1.5; it must lie in"),
        ({"head_consistency_weight": 1.0}, "head_consistency_weight is 1.0; num_heads is 1, so it"),
        (
            {"num_quantiles": 2, "tail_curvature_weight": 1.0},
            "num_quantiles is 2; it must be at least 3 where tail_curvature_weight is above 0",
        ),
        ({"target_mode": "both"}, "target_mode is 'both'; it must be one of mixture, average"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Quantile(**options)
