"""The KL to the reference, in the loss or in the reward, and its controller."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from policy_batch import CONTEXT, random_batch
from reference_policy import kl

from dfpo_jax.objectives import Kl, Old

KINDS = ("k1", "k2", "k3")
CONTROLS = {"kl_coefficient": 0.3}


def random_old(batch):
    log_probs = batch.old_log_probs, batch.ref_log_probs
    return Old(None, *log_probs, batch.mask, {"kl_coefficient": jnp.float32(0.3)})


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_estimate_with_the_current_coefficient(kind):
    batch, live = random_batch()
    objective = Kl(0.1, kind).build()
    (name, loss), *others = objective.terms(live, batch, CONTEXT, None).items()
    assert (name, others, objective.reward) == ("kl", [], None)
    expected = kl(live.log_probs, batch.ref_log_probs, kind)
    np.testing.assert_allclose(loss.per_token, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(loss.weight, 0.3)  # the control's, not that of the settings
    same = objective.terms(live._replace(log_probs=batch.ref_log_probs), batch, CONTEXT, None)[
        "kl"
    ].per_token
    np.testing.assert_array_equal(same, 0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_in_the_reward_it_is_taken_off_every_token_and_only_measured(kind):
    batch, live = random_batch()
    objective = Kl(0.1, kind, "reward").build()
    of_token = kl(batch.old_log_probs, batch.ref_log_probs, kind)
    found = objective.reward(random_old(batch))
    np.testing.assert_allclose(found, -0.3 * of_token * batch.mask, rtol=1e-4, atol=1e-5)
    assert objective.terms(live, batch, CONTEXT, None)["kl"].weight == 0.0


def test_without_a_coefficient_there_is_no_reference_and_no_loss():
    objective = Kl().build()
    assert not objective.needs and objective.terms(None, None, None, None) == {}
    assert objective.controls == {"kl_coefficient": 0.0}
    assert (objective.reward, objective.adapt) == (None, None)
    assert objective.observe(CONTROLS) == {"kl_coefficient": 0.0}
    assert Kl(0.1).build().needs == {"reference"}


def test_a_fixed_coefficient_is_that_of_the_settings():
    """Also in a run that goes on with another."""
    objective = Kl(0.1).build()
    assert objective.controls == {"kl_coefficient": 0.1}
    assert objective.observe(CONTROLS)["kl_coefficient"] == 0.1
    assert objective.adapt(CONTROLS, {"policy/kl": 5.0})["kl_coefficient"] == 0.3


@pytest.mark.parametrize(("seen", "error"), [(0.055, 0.1), (0.045, -0.1), (5.0, 0.2), (0.0, -0.2)])
def test_the_controller_moves_the_coefficient_towards_its_target(seen, error):
    objective = Kl(0.1, target=0.05, horizon=10).build()
    assert objective.observe(CONTROLS)["kl_coefficient"] == 0.3
    found = objective.adapt(CONTROLS, {"policy/kl": seen})["kl_coefficient"]
    # arXiv 1909.08593, section 2.2: the error is bounded by 0.2.
    assert float(found) == pytest.approx(0.3 * (1 + error / 10), rel=1e-5)


def test_the_controller_waits_where_no_update_was_made():
    objective = Kl(0.1, target=0.05).build()
    assert objective.adapt(CONTROLS, {"policy/kl": math.nan})["kl_coefficient"] == 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coefficient": -0.1}, "coefficient is -0.1"),
        ({"estimator": "k4", "coefficient": 0.1}, "estimator is 'k4'"),
        ({"where": "both", "coefficient": 0.1}, "where is 'both'"),
        ({"horizon": 0}, "horizon is 0"),
        ({"target": 0.1}, "target is set but coefficient is 0"),
        ({"estimator": "k1"}, "estimator is 'k1'; coefficient is 0.0"),
        ({"where": "reward"}, "where is 'reward'; coefficient is 0.0"),
        ({"coefficient": 0.1, "horizon": 5}, "horizon is 5; target is 0.0"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Kl(**options)
