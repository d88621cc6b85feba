"""GAE weighted by the tail of the state's law, against loops."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
import reference
from critic_states import DISCOUNT, random_steps
from reference_policy import after_last

from dfpo_jax.advantages import Gae, TailAware, View

NUM = 7


def random_law(seed=0):
    return np.sort(np.random.default_rng(seed).normal(size=(8, 6, NUM))).astype(np.float32)


def estimate(settings, law, steps):
    return settings.build().estimate(View(law, None), steps, None)


@pytest.mark.parametrize("side", ["upper", "lower"])
def test_advantages_equal_a_loop(side, variant):
    law, steps = random_law(), random_steps()
    settings = TailAware(0.8, tail=0.3, temperature=0.4, side=side)
    found = variant(lambda law: estimate(settings, law, steps))(law)
    values = law.mean(axis=-1)
    end = after_last(values, steps.mask, steps.bootstrap)
    advantages, returns = reference.gae(
        steps.rewards, values[:, :-1], steps.mask, DISCOUNT, 0.8, end
    )
    level = 0.7 if side == "upper" else 0.3
    quantile = np.quantile(law[:, :-1].astype(float), level, axis=-1, method="hazen")
    weights = reference.tail_aware_weights(returns, quantile, steps.mask, 0.4, 0.3, side)
    assert np.ptp(weights[steps.mask > 0]) > 0.5
    np.testing.assert_allclose(found, weights * advantages, rtol=1e-4, atol=1e-5)


def test_a_wide_gate_is_plain_gae_and_a_narrow_one_counts_the_tail_alone():
    law, steps = random_law(), random_steps()
    valid, plain = steps.mask > 0, np.asarray(estimate(Gae(), law, steps))
    wide = np.asarray(estimate(TailAware(temperature=1e6), law, steps))
    np.testing.assert_allclose(wide[valid], plain[valid], rtol=1e-5)
    narrow = np.asarray(estimate(TailAware(temperature=1e-3), law, steps))
    weights = narrow[valid] / plain[valid]
    returns = plain + law[:, :-1].mean(axis=-1)
    above = returns > np.quantile(law[:, :-1].astype(float), 0.75, axis=-1, method="hazen")
    assert 0 < above[valid].sum() < valid.sum()
    share = above[valid].mean()
    assert math.isclose(weights.max(), min(1 / share, 10.0), rel_tol=1e-3)
    np.testing.assert_allclose(weights[~above[valid]], 0.1, rtol=1e-3)


def test_lambda_may_adapt_to_the_length():
    law, steps = random_law(), random_steps()
    wide = {"temperature": 1e6}
    found = estimate(TailAware(length_adaptive_alpha=0.5, **wide), law, steps)
    plain = np.asarray(estimate(Gae(length_adaptive_alpha=0.5), law, steps)) * steps.mask
    np.testing.assert_allclose(found, plain, rtol=1e-4, atol=1e-6)
    assert np.any(np.abs(plain - estimate(TailAware(**wide), law, steps)) > 1e-3)


def test_the_tail_needs_a_law():
    assert TailAware().build().needs == {"law"}
    assert jnp.all(estimate(TailAware(), random_law(), random_steps())[3] == 0.0)  # an empty row


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lambda_": 1.5}, "lambda_ is 1.5"),
        ({"side": "both"}, "side is 'both'; it must be one of upper, lower"),
        ({"tail": 0.0}, "tail is 0.0; it must be finite and above 0"),
        ({"tail": 1.5}, r"tail is 1.5; it must lie in \[0, 1\]"),
        ({"temperature": float("inf")}, "temperature is inf; it must be finite and above 0"),
        ({"lambda_": 0.9, "length_adaptive_alpha": 0.5}, "lambda_ is 0.9; length_adaptive_alpha"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        TailAware(**options)
