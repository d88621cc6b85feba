"""GAE on the value of a distribution, and its risk measures, against loops."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
import reference
import reference_critic
from critic_states import random_steps
from reference_policy import after_last

from dfpo_jax import ops
from dfpo_jax.advantages import Gae, Risk, Sigma, View
from dfpo_jax.advantages.gae import lambda_of

QUANTILES = 7
RISKS = {
    "mean": (Risk(), lambda q: q.mean()),
    "cvar": (Risk("cvar", alpha=0.3), lambda q: reference_critic.tail_mean(q, 0.3)),
    "mean_cvar": (
        Risk("mean_cvar", alpha=0.3, eta=0.4),
        lambda q: 0.6 * q.mean() + 0.4 * reference_critic.tail_mean(q, 0.3),
    ),
    "wang": (Risk("wang", wang_shift=0.4), lambda q: reference_critic.wang(q, 0.4)),
    "seeking": (Risk("wang", wang_shift=-1.0), lambda q: reference_critic.wang(q, -1.0)),
}


def random_law(num=QUANTILES):
    """[B, R + 1, M] sorted quantiles."""
    batch, length = random_steps().mask.shape
    law = np.random.default_rng(0).normal(size=(batch, length + 1, num))
    return np.sort(law, axis=-1).astype(np.float32)


def estimate(settings, law, steps):
    view = View(jnp.asarray(law), returns=None)
    return np.asarray(settings.build().estimate(view, steps, None)) * steps.mask


def expected_gae(values, steps, lambda_):
    end = after_last(values, steps.mask, steps.bootstrap)
    return reference.gae(steps.rewards, values[:, :-1], steps.mask, steps.discount, lambda_, end)[0]


@pytest.mark.parametrize("name", RISKS)
def test_advantages_under_a_risk_measure_equal_loops(name):
    risk, measure = RISKS[name]
    law, steps = random_law(), random_steps()
    values = np.apply_along_axis(measure, -1, law)
    found = estimate(Gae(0.9, risk=risk), law, steps)
    np.testing.assert_allclose(found, expected_gae(values, steps, 0.9), atol=1e-4)
    spread = law[:, :-1].std(axis=-1) + 0.2
    found = estimate(Sigma(0.9, risk=risk, floor=0.2), law, steps)
    np.testing.assert_allclose(found, expected_gae(values, steps, 0.9) / spread, atol=1e-4)


@pytest.mark.parametrize("bootstrap", [False, True])
def test_values_of_a_scalar_critic_are_taken_as_they_are(bootstrap):
    law, steps = random_law(1), random_steps(1.0, bootstrap)
    found = estimate(Gae(0.7), law, steps)
    np.testing.assert_allclose(found, expected_gae(law[..., 0], steps, 0.7), atol=1e-5)


def test_mean_of_quantile_advantages_is_the_advantage_of_the_mean():
    law, steps = random_law(), random_steps()
    targets = ops.lambda_average(
        jnp.asarray(steps.rewards),
        jnp.asarray(law[:, :-1]),
        jnp.asarray(steps.mask),
        discount=steps.discount,
        lambda_=0.7,
        final_values=jnp.asarray(after_last(law, steps.mask, steps.bootstrap)),
    )
    each = (np.asarray(targets) - law[:, :-1]) * steps.mask[..., None]
    found = estimate(Gae(0.7), law, steps)
    np.testing.assert_allclose(found, each.mean(axis=-1), atol=1e-5)


def test_lambda_is_a_number_or_follows_the_length():
    mask = random_steps().mask
    assert lambda_of(Gae(0.9), mask) == 0.9
    lengths = mask.sum(axis=1)
    expected = np.array([max(0.0, 1 - 1 / (0.5 * n)) if n else 0.0 for n in lengths])
    adaptive = Gae(length_adaptive_alpha=0.5)
    np.testing.assert_allclose(lambda_of(adaptive, jnp.asarray(mask)), expected, atol=1e-6)
    law, steps = random_law(1), random_steps()
    found = estimate(adaptive, law, steps)
    np.testing.assert_allclose(found, expected_gae(law[..., 0], steps, expected), atol=1e-5)


def test_only_the_mean_needs_no_distribution():
    for name, (risk, _) in RISKS.items():
        wanted = "value" if name == "mean" else "law"
        assert Gae(risk=risk).build().needs == {wanted}
        assert Sigma(risk=risk).build().needs == {"law"}


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measure": "var"}, "measure is 'var'.*mean, cvar, mean_cvar, wang"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"eta": -0.5}, "eta is -0.5"),
        ({"wang_shift": math.nan}, "wang_shift is nan"),
        ({"alpha": 0.3}, "alpha is 0.3; measure is 'mean', so it must be left at 0.1"),
        ({"measure": "cvar", "eta": 0.3}, "eta is 0.3; measure is 'cvar'"),
        ({"measure": "mean_cvar", "wang_shift": 0.3}, "wang_shift is 0.3; measure is 'mean_cvar'"),
        ({"measure": "wang", "alpha": 0.3}, "alpha is 0.3; measure is 'wang'"),
    ],
)
def test_bad_risk_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Risk(**options)


@pytest.mark.parametrize("settings", [Gae, Sigma])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lambda_": -0.1}, "lambda_ is -0.1"),
        ({"lambda_": 1.5}, "lambda_ is 1.5"),
        ({"length_adaptive_alpha": -1.0}, "length_adaptive_alpha is -1.0"),
        (
            {"lambda_": 0.9, "length_adaptive_alpha": 0.5},
            "lambda_ is 0.9; length_adaptive_alpha is 0.5, so it must be left at 0.95",
        ),
    ],
)
def test_bad_settings_are_named(settings, options, message):
    with pytest.raises(ValueError, match=message):
        settings(**options)


@pytest.mark.parametrize("floor", [-0.1, 0.0, 1e-50, float("nan")])
def test_a_floor_that_may_divide_by_zero_is_named(floor):
    with pytest.raises(ValueError, match=f"floor is {floor}; it must lie in .1e-06, inf"):
        Sigma(floor=floor)
