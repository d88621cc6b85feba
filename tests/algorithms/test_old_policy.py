"""The old policy on a rollout, and its rewards in value units, against numpy loops."""

import jax
import numpy as np
import pytest
import tiny
from reference_policy import kl, log_probs, shaped_rewards
from tiny import Markov, ragged_rollout

from dfpo_jax.algorithms import AlgorithmConfig, LogProbs, Returns, sft
from dfpo_jax.algorithms.old_policy import evaluate_old
from dfpo_jax.algorithms.trunk import join_sequence
from dfpo_jax.objectives import Kl, Objective, Objectives

TEMPERATURE = 0.8


def run(objectives=None, **sections):
    """(Evaluated, rollout, state, numpy log-probabilities of the old policy and the reference)."""
    model, rollout, objectives = Markov(), ragged_rollout(), objectives or {}
    state, config = tiny.make_state(sft(model)), AlgorithmConfig(**sections)
    found = jax.jit(lambda s, r: evaluate_old(model, config, objectives, s, r, TEMPERATURE))(
        state, rollout
    )
    old = log_probs(state.params["policy"], rollout, TEMPERATURE)
    return found, rollout, state, old, log_probs(state.reference, rollout, TEMPERATURE)


def test_it_evaluates_the_policy_and_places_rewards():
    found, rollout, state, old, _ = run(returns=Returns(discount=0.9))
    np.testing.assert_allclose(found.old.log_probs, old, atol=1e-5)
    sequence = np.concatenate([rollout.prompt_tokens, rollout.tokens], axis=1)
    embedding = state.params["policy"]["embedding"]
    np.testing.assert_array_equal(found.old.hidden, embedding[sequence])
    np.testing.assert_array_equal(found.steps.mask, rollout.mask)
    np.testing.assert_array_equal(found.importance, 1.0)
    assert found.old.ref_log_probs is None
    assert not np.any(found.steps.bootstrap) and found.steps.discount == 0.9
    none = np.zeros(8)
    expected = shaped_rewards(state.controls, rollout.mask, rollout.rewards, none, discount=0.9)
    np.testing.assert_allclose(found.steps.rewards, expected, atol=1e-6)
    np.testing.assert_array_equal(found.old.controls["kl_coefficient"], np.float32(0.2))


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kl_in_the_reward_is_taken_off_every_token(kind):
    found, rollout, state, old, ref = run({"kl": Kl(0.5, kind, "reward").build()})
    np.testing.assert_allclose(found.old.ref_log_probs, ref, atol=1e-5)
    inputs = state.controls, rollout.mask, rollout.rewards, np.zeros(8)
    expected = shaped_rewards(*inputs, kl=kl(old, ref, kind))
    np.testing.assert_allclose(found.steps.rewards, expected, atol=1e-5)
    assert np.abs(shaped_rewards(*inputs) - expected).max() > 1e-3


def test_kl_in_the_loss_leaves_rewards_as_they_are():
    found, rollout, state, _, ref = run({"kl": Kl(0.5).build()})
    np.testing.assert_allclose(found.old.ref_log_probs, ref, atol=1e-5)
    plain = shaped_rewards(state.controls, rollout.mask, rollout.rewards, np.zeros(8))
    np.testing.assert_allclose(found.steps.rewards, plain, atol=1e-6)


@pytest.mark.parametrize("overlong", ["terminal", "bootstrap"])
def test_without_an_outcome_a_response_ends_with_0_in_value_units(overlong):
    returns = Returns(0.9, outcome=False, overlong=overlong)
    found, rollout, state, old, ref = run({"kl": Kl(0.5, "k1", "reward").build()}, returns=returns)
    mu, sigma = (float(state.controls[f"value_{name}"]) for name in ("shift", "scale"))
    assert mu != 0.0
    penalty = float(state.controls["kl_coefficient"]) * kl(old, ref, "k1")
    for b, row in enumerate(rollout.mask):
        slots = np.flatnonzero(row)
        for i in slots:
            ends = i == slots[-1] and not (overlong == "bootstrap" and rollout.truncated[b])
            expected = (-penalty[b, i] - (0.0 if ends else 0.1 * mu)) / sigma
            np.testing.assert_allclose(found.steps.rewards[b, i], expected, atol=1e-5)


def test_rewards_that_objectives_add_are_in_units_of_reward():
    bonus = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    added = Objective(lambda *_: {}, reward=lambda old: bonus * old.mask)
    found, rollout, state, *_ = run({"one": added, "two": added})
    plain = shaped_rewards(state.controls, rollout.mask, rollout.rewards, np.zeros(8))
    expected = plain + 2 * bonus * rollout.mask / float(state.controls["value_scale"])
    np.testing.assert_allclose(found.steps.rewards, expected, atol=1e-5)


def test_overlong_responses():
    found, rollout, state, *_ = run(returns=Returns(overlong="bootstrap"))
    np.testing.assert_array_equal(found.steps.bootstrap, rollout.truncated)
    np.testing.assert_array_equal(found.steps.mask, rollout.mask)
    expected = shaped_rewards(state.controls, rollout.mask, rollout.rewards, rollout.truncated)
    np.testing.assert_allclose(found.steps.rewards, expected, atol=1e-6)

    found, *_ = run(returns=Returns(overlong="mask"))
    kept = rollout.mask * ~rollout.truncated[:, None]
    np.testing.assert_array_equal(found.steps.mask, kept)
    np.testing.assert_array_equal(found.old.mask, kept)
    expected = shaped_rewards(state.controls, kept, rollout.rewards, np.zeros(8))
    np.testing.assert_allclose(found.steps.rewards, expected, atol=1e-6)
    assert not np.any(found.steps.bootstrap)
    _, valid = join_sequence(rollout)
    np.testing.assert_array_equal(found.valid, valid)


def test_sampler_log_probs_can_be_reused_or_corrected_for():
    found, rollout, _, old, _ = run(
        objective=Objectives(importance_cap=1.5), log_probs=LogProbs(recompute=False)
    )
    np.testing.assert_array_equal(found.old.log_probs, rollout.log_probs)
    np.testing.assert_array_equal(found.importance, 1.0)
    found, *_ = run(objective=Objectives(importance_cap=1.5))
    expected, mask = np.minimum(np.exp(old - rollout.log_probs), 1.5), rollout.mask
    np.testing.assert_allclose(found.importance * mask, expected * mask, rtol=1e-4)
    assert (expected[mask > 0] == 1.5).any() and (expected[mask > 0] < 1.4).any()


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        (Returns, {"discount": 1.1}, "discount is 1.1"),
        (Returns, {"overlong": "drop"}, "overlong is 'drop'.*terminal, bootstrap, mask"),
        (LogProbs, {"chunk": -1}, "chunk is -1"),
    ],
)
def test_bad_settings_are_named(settings, options, message):
    with pytest.raises(ValueError, match=message):
        settings(**options)
