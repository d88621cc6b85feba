"""The policy side shared by DFPO and PPO, against numpy loops."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import tiny
from reference_policy import after_last, kl, log_probs, shaped_rewards, valid_slots
from tiny import Markov, ragged_rollout

from dfpo_jax.algorithms.base import Batch, Context, PolicyConfig
from dfpo_jax.algorithms.critic import CriticConfig, policy_scale
from dfpo_jax.algorithms.policy import (
    final_values,
    finish_advantages,
    freeze,
    join_sequence,
    normalise_rewards,
    policy_lambda,
    policy_losses,
    successor_index,
)
from dfpo_jax.algorithms.sft import sft

TEMPERATURE = 0.8


# --- indices, units, ends -----------------------------------------------------------------------


def test_successor_is_the_next_valid_state(variant):
    mask = reference.random_mask(np.random.default_rng(0), 12, 6)
    out = np.asarray(variant(successor_index)(mask))
    for row, found in zip(mask, out, strict=True):
        slots = valid_slots(row)
        for i in slots:
            later = [j for j in slots if j > i]
            assert found[i] == (later[0] if later else i + 1)
    assert out.min() >= 1 and out.max() <= 6 and out.dtype == np.int32


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_normalised_rewards_give_the_normalised_return(discount, variant):
    rng = np.random.default_rng(1)
    mask = reference.random_mask(rng, 8, 5)
    bootstrap = np.arange(8) % 2 == 1
    rewards = (rng.normal(size=mask.shape) * mask).astype(np.float32)
    after = rng.normal(size=8)  # raw value after the last valid token of bootstrapped rows
    shift, scale = jnp.float32(0.4), jnp.float32(0.7)
    out = variant(normalise_rewards, static_argnames="discount")(
        rewards, mask, bootstrap, shift, scale, discount=discount
    )
    np.testing.assert_array_equal(np.asarray(out)[mask == 0], 0.0)
    for b, row in enumerate(mask):
        raw = float(after[b]) if bootstrap[b] else 0.0
        unit = (raw - 0.4) / 0.7 if bootstrap[b] else 0.0
        for i in reversed(valid_slots(row)):
            raw = float(rewards[b, i]) + discount * raw
            unit = float(out[b, i]) + discount * unit
            assert math.isclose(unit, (raw - 0.4) / 0.7, abs_tol=1e-5)


@pytest.mark.parametrize("trailing", [(), (3,)])
def test_final_values_are_read_behind_the_last_token(trailing, variant):
    rng = np.random.default_rng(2)
    mask = reference.random_mask(rng, 8, 5)
    bootstrap = np.arange(8) % 2 == 1
    values = rng.normal(size=(8, 6, *trailing)).astype(np.float32)
    out = np.asarray(variant(final_values)(values, mask, bootstrap))
    assert out.shape == (8, *trailing)
    np.testing.assert_array_equal(out, after_last(values, mask, bootstrap))


def test_joined_sequences_keep_the_tokens_of_gaps():
    rollout = ragged_rollout()
    tokens, valid = join_sequence(rollout)
    np.testing.assert_array_equal(tokens[:, :4], rollout.prompt_tokens)
    np.testing.assert_array_equal(tokens[:, 4:], rollout.tokens)
    np.testing.assert_array_equal(valid[:, :4], rollout.prompt_mask)
    for row, response in zip(rollout.mask, np.asarray(valid)[:, 4:], strict=True):
        end = max([i + 1 for i in valid_slots(row)], default=0)
        assert response.tolist() == [1.0] * end + [0.0] * (5 - end)


def test_lambda_and_warm_up():
    mask = ragged_rollout().mask
    assert policy_lambda(PolicyConfig(gae_lambda=0.9), mask) == 0.9
    out = policy_lambda(PolicyConfig(length_adaptive_alpha=0.5), jnp.asarray(mask))
    lengths = mask.sum(axis=1)
    expected = [max(0.0, 1 - 1 / (0.5 * n)) if n else 0.0 for n in lengths]
    np.testing.assert_allclose(out, expected, atol=1e-6)
    assert [float(policy_scale(jnp.int32(step), 2)) for step in range(4)] == [0, 0, 1, 1]


@pytest.mark.parametrize("whiten", [True, False])
def test_advantages_are_whitened_over_valid_tokens(whiten):
    rng = np.random.default_rng(3)
    mask = reference.random_mask(rng, 6, 5)
    advantages = rng.normal(2.0, 3.0, mask.shape).astype(np.float32)
    out = finish_advantages(PolicyConfig(whiten=whiten), jnp.asarray(advantages), mask)
    expected = reference.masked_whiten(advantages, mask) if whiten else advantages * mask
    np.testing.assert_allclose(out, expected, atol=1e-5)


# --- freeze -------------------------------------------------------------------------------------


def run_freeze(rollout=None, **options):
    """`freeze` on ragged rows: (Frozen, rollout, state, numpy old and reference log-probs)."""
    model, config = Markov(), PolicyConfig(**options)
    rollout = ragged_rollout() if rollout is None else rollout
    state = tiny.make_state(sft(model))
    frozen = jax.jit(lambda s, r: freeze(config, model, s, r, TEMPERATURE))(state, rollout)
    old = log_probs(state.params["policy"], rollout, TEMPERATURE)
    return frozen, rollout, state, old, log_probs(state.reference, rollout, TEMPERATURE)


def test_freeze_evaluates_the_policy_and_places_rewards():
    frozen, rollout, state, old, _ = run_freeze(discount=0.9)
    np.testing.assert_allclose(frozen.old_log_probs, old, atol=1e-5)
    assert frozen.states.shape == (8, 6, tiny.WIDTH)
    sequence = np.concatenate([rollout.prompt_tokens, rollout.tokens], axis=1)
    embedding = state.params["policy"]["embedding"]
    np.testing.assert_array_equal(frozen.states, embedding[sequence[:, 3:]])
    np.testing.assert_array_equal(frozen.mask, rollout.mask)
    np.testing.assert_array_equal(frozen.importance, 1.0)
    assert frozen.ref_log_probs is None
    assert not np.any(frozen.bootstrap)
    expected = shaped_rewards(state, rollout.mask, rollout.rewards, np.zeros(8), discount=0.9)
    np.testing.assert_allclose(frozen.rewards, expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kl_in_the_reward_is_taken_off_every_token(kind):
    options = {"kl_coefficient": 0.5, "kl_in": "reward", "kl_kind": kind}
    frozen, rollout, state, old, ref = run_freeze(**options)
    np.testing.assert_allclose(frozen.ref_log_probs, ref, atol=1e-5)
    of_token, no_row = kl(old, ref, kind), np.zeros(8)
    expected = shaped_rewards(state, rollout.mask, rollout.rewards, no_row, kl=of_token)
    np.testing.assert_allclose(frozen.rewards, expected, atol=1e-5)
    plain = shaped_rewards(state, rollout.mask, rollout.rewards, no_row)
    assert np.abs(plain - expected).max() > 1e-3


def test_kl_in_the_loss_leaves_rewards_as_they_are():
    frozen, rollout, state, _, ref = run_freeze(kl_coefficient=0.5, kl_in="loss")
    np.testing.assert_allclose(frozen.ref_log_probs, ref, atol=1e-5)
    plain = shaped_rewards(state, rollout.mask, rollout.rewards, np.zeros(8))
    np.testing.assert_allclose(frozen.rewards, plain, atol=1e-6)


def test_overlong_responses():
    frozen, rollout, state, *_ = run_freeze(overlong="bootstrap")
    np.testing.assert_array_equal(frozen.bootstrap, rollout.truncated)
    np.testing.assert_array_equal(frozen.mask, rollout.mask)
    expected = shaped_rewards(state, rollout.mask, rollout.rewards, rollout.truncated)
    np.testing.assert_allclose(frozen.rewards, expected, atol=1e-6)

    frozen, *_ = run_freeze(overlong="mask")
    kept = rollout.mask * ~rollout.truncated[:, None]
    np.testing.assert_array_equal(frozen.mask, kept)
    np.testing.assert_allclose(
        frozen.rewards, shaped_rewards(state, kept, rollout.rewards, np.zeros(8)), atol=1e-6
    )
    assert not np.any(frozen.bootstrap)
    _, valid = join_sequence(rollout)
    np.testing.assert_array_equal(frozen.valid, valid)


def test_sampler_log_probs_can_be_reused_or_corrected_for():
    rollout = ragged_rollout()
    frozen, *_ = run_freeze(recompute_log_probs=False, importance_cap=1.5)
    np.testing.assert_array_equal(frozen.old_log_probs, rollout.log_probs)
    np.testing.assert_array_equal(frozen.importance, 1.0)
    frozen, _, _, old, _ = run_freeze(importance_cap=1.5)
    expected = np.minimum(np.exp(old - rollout.log_probs), 1.5)
    np.testing.assert_allclose(frozen.importance * rollout.mask, expected * rollout.mask, rtol=1e-4)
    assert (expected[rollout.mask > 0] == 1.5).any() and (expected[rollout.mask > 0] < 1.4).any()


def test_rewards_are_clipped_before_anything_else():
    rollout = ragged_rollout()
    rollout = rollout.replace(rewards=np.linspace(-3, 3, 8).astype(np.float32))
    frozen, _, state, *_ = run_freeze(rollout, reward_clip=1.25)
    clipped = np.clip(rollout.rewards, -1.25, 1.25)
    expected = shaped_rewards(state, rollout.mask, clipped, np.zeros(8))
    np.testing.assert_allclose(frozen.rewards, expected, atol=1e-6)


# --- losses -------------------------------------------------------------------------------------


def make_batch(seed=4):
    """A batch of random log-probabilities around the old ones: (Batch, log_probs, entropy)."""
    rng = np.random.default_rng(seed)
    rollout = ragged_rollout()
    shape = rollout.mask.shape
    old = -rng.uniform(0.5, 3.0, shape)
    log_probs, reference_log_probs = old + rng.normal(0, 0.4, (2, *shape))
    batch = Batch(
        row=np.arange(8),
        sequence=None,
        valid=None,
        tokens=rollout.tokens,
        mask=rollout.mask,
        old_log_probs=old.astype(np.float32),
        ref_log_probs=reference_log_probs.astype(np.float32),
        importance=rng.uniform(0.5, 2.0, shape).astype(np.float32),
        advantages=rng.normal(size=shape).astype(np.float32),
    )
    return batch, log_probs.astype(np.float32), rng.uniform(0, 2, shape).astype(np.float32)


CONTEXT = Context(kl_coefficient=jnp.float32(0.3), policy_scale=jnp.float32(1.0))


@pytest.mark.parametrize(
    ("aggregation", "dual_clip", "kind"),
    [
        ("token_mean", 0.0, "k1"),
        ("token_mean", 1.2, "k2"),
        ("sequence_mean", 0.0, "k2"),
        ("sequence_mean", 1.2, "k3"),
    ],
)
def test_losses_equal_loops(aggregation, dual_clip, kind, variant):
    config = PolicyConfig(
        aggregation=aggregation,
        dual_clip=dual_clip,
        clip_low=0.15,
        clip_high=0.3,
        entropy_coefficient=0.01,
        kl_coefficient=0.1,
        kl_kind=kind,
    )
    batch, log_probs, entropy = make_batch()
    terms = variant(lambda *args: policy_losses(config, *args))(log_probs, entropy, batch, CONTEXT)
    old, advantages = batch.old_log_probs, batch.advantages
    ratio = np.exp(log_probs - old)
    surrogate = reference.ppo_clip(log_probs, old, advantages, 0.15, 0.3, dual_clip or None)
    outside = ((advantages > 0) & (ratio > 1.3)) | ((advantages < 0) & (ratio < 0.85))
    expected = {
        "policy/loss": (surrogate * batch.importance, 1.0),
        "policy/entropy": (entropy, -0.01),
        "policy/clip_fraction": (outside, 0.0),
        "policy/kl_old": (kl(log_probs, old, "k3"), 0.0),
        "policy/kl": (kl(log_probs, batch.ref_log_probs, kind), 0.3),
    }
    assert set(terms) == set(expected)
    for name, (per_token, weight) in expected.items():
        mean = reference.aggregate(per_token, batch.mask, aggregation)
        term = terms[name]
        np.testing.assert_allclose(term.total / term.count, mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(term.weight, weight, rtol=1e-6)
    assert 0 < float(terms["policy/clip_fraction"].total)


def test_kl_to_oneself_is_zero_and_nothing_is_clipped():
    batch, *_ = make_batch()
    old = batch.old_log_probs
    batch = dataclasses.replace(batch, ref_log_probs=old)
    for kind in ("k1", "k2", "k3"):
        config = PolicyConfig(kl_coefficient=0.1, kl_kind=kind)
        terms = policy_losses(config, jnp.asarray(old), jnp.zeros_like(old), batch, CONTEXT)
        for name in ("policy/kl", "policy/kl_old", "policy/clip_fraction"):
            assert float(terms[name].total) == 0.0
        mean = (batch.advantages * batch.importance)[batch.mask > 0].mean()
        term = terms["policy/loss"]
        np.testing.assert_allclose(term.total / term.count, -mean, rtol=1e-5)


def test_frozen_quantities_get_no_gradient():
    config = PolicyConfig(kl_coefficient=0.1, entropy_coefficient=0.01, clip_low=0.9, clip_high=9.0)
    batch, log_probs, entropy = make_batch()
    names = ["old_log_probs", "ref_log_probs", "importance", "advantages", "mask"]

    def loss(live, frozen):
        rows = dataclasses.replace(batch, **frozen)
        return tiny.objective(policy_losses(config, *live, rows, CONTEXT))

    frozen = {name: jnp.asarray(getattr(batch, name)) for name in names}
    live, stopped = jax.jit(jax.grad(loss, argnums=(0, 1)))((log_probs, entropy), frozen)
    for name in names:
        np.testing.assert_array_equal(stopped[name], 0.0)
    for x in live:
        assert np.all((np.asarray(x) != 0) == (batch.mask > 0))


def test_switched_off_terms_get_no_gradient():
    """Without a coefficient the entropy, and with `kl_in="reward"` the KL, are metrics only."""
    batch, log_probs, entropy = make_batch()
    config = PolicyConfig(kl_coefficient=0.1, kl_in="reward")
    terms = policy_losses(config, log_probs, entropy, batch, CONTEXT)
    assert terms["policy/kl"].weight == 0.0
    assert float(terms["policy/kl"].total) > 0
    grad = jax.grad(lambda h: tiny.objective(policy_losses(config, log_probs, h, batch, CONTEXT)))
    np.testing.assert_array_equal(grad(entropy), 0.0)
    batch = dataclasses.replace(batch, ref_log_probs=None)
    assert "policy/kl" not in policy_losses(config, log_probs, entropy, batch, CONTEXT)


def test_policy_scale_silences_every_policy_term():
    batch, log_probs, entropy = make_batch()
    config = PolicyConfig(kl_coefficient=0.1, entropy_coefficient=0.01)
    silent = dataclasses.replace(CONTEXT, policy_scale=jnp.float32(0.0))

    def loss(log_probs, entropy):
        return tiny.objective(policy_losses(config, log_probs, entropy, batch, silent))

    for grad in jax.grad(loss, argnums=(0, 1))(log_probs, entropy):
        np.testing.assert_array_equal(grad, 0.0)


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"discount": 1.1}, "discount is 1.1"),
        ({"gae_lambda": -0.1}, "gae_lambda is -0.1"),
        ({"clip_low": 1.5}, "clip_low is 1.5"),
        ({"clip_high": math.nan}, "clip_high is nan"),
        ({"dual_clip": 0.5}, "dual_clip is 0.5"),
        ({"advantage": "td"}, "advantage is 'td'.*gae, sigma, rank"),
        ({"overlong": "drop"}, "overlong is 'drop'"),
        ({"kl_kind": "k4"}, "kl_kind is 'k4'"),
        ({"kl_in": "both"}, "kl_in is 'both'"),
        ({"aggregation": "sum"}, "aggregation is 'sum'"),
        ({"kl_horizon": 0}, "kl_horizon is 0"),
        ({"kl_target": 0.1}, "kl_target is set"),
        ({"importance_cap": -1.0}, "importance_cap is -1.0"),
    ],
)
def test_bad_policy_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        PolicyConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trunk": "mine"}, "trunk is 'mine'.*own, shared, detached"),
        ({"critic_lambda": 1.5}, "critic_lambda is 1.5"),
        ({"warmup": -1}, "warmup is -1"),
        ({"loss_weight": -1.0}, "loss_weight is -1.0"),
    ],
)
def test_bad_critic_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        CriticConfig(**options)
