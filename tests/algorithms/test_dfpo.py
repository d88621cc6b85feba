"""DFPO: what `prepare` reads from the flow, and its advantages."""

import dataclasses
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import reference_critic
from critic_cases import dfpo_case as case
from reference_policy import after_last, shaped_rewards, state_tokens, valid_slots

from dfpo_jax import ops
from dfpo_jax.algorithms.base import PolicyConfig
from dfpo_jax.algorithms.dfpo import DFPOConfig, RiskConfig, advantages


def risk_of(measure, quantiles):
    low = np.apply_along_axis(reference_critic.tail_mean, -1, quantiles, 0.3)
    mean = quantiles.mean(axis=-1)
    return {"mean": mean, "cvar": low, "mean_cvar": 0.6 * mean + 0.4 * low}[measure]


# --- prepare ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["own", "shared", "detached", "average"])
def test_advantages_equal_loops_over_predicted_quantiles(name):
    this = case(name)
    state, mask, policy = this.state, this.rollout.mask, this.config.policy
    bootstrap = this.rollout.truncated * (policy.overlong == "bootstrap")
    quantiles = this.quantiles()
    values = risk_of(this.measure, quantiles)
    rewards = shaped_rewards(state, mask, this.rollout.rewards, bootstrap, discount=policy.discount)
    end = after_last(values, mask, bootstrap)
    expected, _ = reference.gae(rewards, values[:, :-1], mask, policy.discount, 0.9, end)
    if policy.advantage == "sigma":
        expected = expected / (quantiles[:, :-1].std(axis=-1) + 0.2)
    if policy.whiten:
        expected = reference.masked_whiten(expected, mask)
    np.testing.assert_array_equal(this.batch.mask, mask)
    np.testing.assert_allclose(this.batch.critic.rewards, rewards, atol=1e-6)
    np.testing.assert_allclose(this.batch.advantages, expected, atol=5e-5)
    predicted = jax.jit(this.algorithm.predict)(state, this.rollout)
    raw = quantiles[:, :-1] * float(state.value_scale) + float(state.value_shift)
    np.testing.assert_allclose(predicted, raw, atol=2e-5)
    assert np.ptp(values) > 0.1 and quantiles.std(axis=-1).min() > 0.05


def test_rank_places_the_observed_return_in_the_critics_distribution():
    this = case("rank")
    kept = this.rollout.mask * ~this.rollout.truncated[:, None]
    rewards = shaped_rewards(this.state, kept, this.rollout.rewards, np.zeros(8), discount=0.9)
    quantiles, expected = this.quantiles(), np.zeros_like(kept)
    for b, row in enumerate(kept):
        total = 0.0
        for i in reversed(valid_slots(row)):
            total = rewards[b, i] + 0.9 * total
            expected[b, i] = 2 * reference.cdf(quantiles[b, i], total) - 1
    np.testing.assert_array_equal(this.batch.mask, kept)
    np.testing.assert_allclose(this.batch.advantages, expected, atol=1e-5)


def test_rank_takes_the_returns_of_the_policys_lambda():
    """At 0 a reward and the flow of the next valid state, at any lambda of the critic."""
    this, num = case("rank_at_zero"), 500
    advantages, rewards = np.asarray(this.batch.advantages), np.asarray(this.batch.critic.rewards)
    table, tokens = this.table(ops.noise_quantiles(4000)), state_tokens(this.rollout)
    quantiles, successors, spreads = this.quantiles(), this.successors(), []
    for b, row in enumerate(this.rollout.mask):
        slots = valid_slots(row)
        for i in slots:
            goals = rewards[b, i] + 0.9 * table[tokens[b, successors[b, i]]]
            if i == slots[-1] and not this.rollout.truncated[b]:
                goals = rewards[b, i : i + 1]
            ranks = np.array([2 * reference.cdf(quantiles[b, i], goal) - 1 for goal in goals])
            error = 5 * ranks.std() / math.sqrt(num) + 2e-3
            assert abs(advantages[b, i] - ranks.mean()) < error
            spreads.append(ranks.std())
    assert np.median(spreads) > 0.1


def test_trajectories_run_from_the_noise_to_the_quantiles():
    this = case("detached")  # which integrates in the 16 steps that are drawn
    paths = np.asarray(jax.jit(this.algorithm.trajectories)(this.state, this.rollout))
    assert paths.shape == (17, 8, 5)
    grid = np.asarray(ops.noise_quantiles(5))
    np.testing.assert_allclose(paths[0], np.broadcast_to(grid, (8, 5)), atol=1e-6)
    np.testing.assert_allclose(np.sort(paths[-1]), this.quantiles()[:, 0], atol=1e-5)


def test_targets_at_lambda_one_are_the_observed_returns():
    this = case("shared")
    rewards, samples = np.asarray(this.batch.critic.rewards), np.asarray(this.batch.critic.samples)
    for b, row in enumerate(this.rollout.mask):
        total = 0.0
        for i in reversed(valid_slots(row)):
            total = rewards[b, i] + 0.9 * total
            np.testing.assert_allclose(samples[b, i], total, atol=1e-5)


def test_targets_at_lambda_zero_are_the_flow_of_the_next_valid_state():
    this = case("detached")
    rewards, samples = np.asarray(this.batch.critic.rewards), np.asarray(this.batch.critic.samples)
    noise = np.random.default_rng(0).normal(size=2000)
    table, tokens = this.table(noise), state_tokens(this.rollout)
    for b, row in enumerate(this.rollout.mask):
        slots = valid_slots(row)
        for i in slots:
            follower = next((j for j in slots if j > i), i + 1)
            expected = rewards[b, i] + 0.9 * table[tokens[b, follower]]
            if i == slots[-1] and not this.rollout.truncated[b]:
                expected = np.full(1, rewards[b, i])
            assert this.batch.critic.successor[b, i] == follower
            error = 5 * expected.std() * math.sqrt(1 / 1000 + 1 / 2000) + 1e-5
            assert abs(samples[b, i].mean() - expected.mean()) < error
            assert abs(samples[b, i].std() - expected.std()) < 0.2 * expected.std() + 1e-5


def test_average_targets_equal_loops_per_quantile():
    this = case("average")
    rewards, samples = np.asarray(this.batch.critic.rewards), np.asarray(this.batch.critic.samples)
    values = this.table(np.asarray(ops.noise_quantiles(4)))[state_tokens(this.rollout)]
    ends = after_last(values, this.rollout.mask, this.rollout.truncated)
    for b, row in enumerate(this.rollout.mask):
        slots = valid_slots(row)
        loops = [
            reference_critic.gae_returns(rewards[b], values[b, :, q], row, 0.9, 0.8, ends[b, q])
            for q in range(4)
        ]
        expected = np.sort(np.stack(loops, axis=-1))[slots]
        np.testing.assert_allclose(np.sort(samples[b])[slots], expected, atol=2e-5)


def test_uncertain_states_are_discounted():
    this = case("detached")
    grid, step = np.asarray(ops.noise_quantiles(1000), float), 1e-2
    slopes = (this.table(grid + step) - this.table(grid - step)) / (2 * step)
    sigma = np.abs(slopes).mean(axis=-1)[state_tokens(this.rollout)[:, :-1]]
    np.testing.assert_allclose(this.batch.critic.weight, 1 / (1 + (sigma / 0.5) ** 2), rtol=2e-3)
    np.testing.assert_array_equal(case("shared").batch.critic.weight, 1.0)


# --- advantages ---------------------------------------------------------------------------------


def parts(seed=0, samples=6, bootstrap=True):
    """Random quantiles, samples and shaped rewards on masks with holes."""
    rng = np.random.default_rng(seed)
    mask = reference.random_mask(rng, 6, 4)
    frozen = SimpleNamespace(
        mask=jnp.asarray(mask),
        rewards=jnp.asarray(rng.normal(size=mask.shape) * mask, jnp.float32),
        bootstrap=jnp.asarray((np.arange(6) % 2 == 1) & bootstrap),
    )
    quantiles = np.sort(rng.normal(size=(6, 5, 7))).astype(np.float32)
    goals = rng.normal(size=(6, 4, samples)).astype(np.float32)
    goals[:, :, 0] = quantiles[:, :-1, 3]  # ties
    return frozen, jnp.asarray(quantiles), jnp.asarray(goals)


def test_mean_of_quantile_advantages_is_the_advantage_of_the_mean():
    frozen, quantiles, samples = parts()
    config = DFPOConfig(PolicyConfig(discount=0.9, gae_lambda=0.7))
    found = advantages(config, frozen, quantiles, samples)
    final = after_last(np.asarray(quantiles), np.asarray(frozen.mask), np.asarray(frozen.bootstrap))
    targets = ops.lambda_average(
        frozen.rewards,
        quantiles[:, :-1],
        frozen.mask,
        discount=0.9,
        lambda_=0.7,
        final_values=jnp.asarray(final),
    )
    each = (targets - quantiles[:, :-1]) * frozen.mask[..., None]
    np.testing.assert_allclose(found, each.mean(axis=-1), atol=1e-5)


@pytest.mark.parametrize("shift", [0.4, -1.0])
def test_values_under_wang_have_the_shift_of_the_settings(shift):
    frozen, quantiles, samples = parts(bootstrap=False)
    config = DFPOConfig(PolicyConfig(), risk=RiskConfig("wang", wang_shift=shift))
    values = np.apply_along_axis(reference_critic.wang, -1, np.asarray(quantiles), shift)
    end = after_last(values, np.asarray(frozen.mask), np.zeros(len(values)))
    rewards, mask = np.asarray(frozen.rewards), np.asarray(frozen.mask)
    expected, _ = reference.gae(rewards, values[:, :-1], mask, 1.0, 0.95, end)
    np.testing.assert_allclose(advantages(config, frozen, quantiles, samples), expected, atol=1e-4)


def test_rank_is_the_quantile_of_the_observed_return(variant):
    frozen, quantiles, samples = parts()
    config = DFPOConfig(PolicyConfig(advantage="rank"))
    out = np.asarray(variant(lambda *x: advantages(config, frozen, *x))(quantiles, samples))
    for b, i in np.ndindex(6, 4):
        ranks = [2 * reference.cdf(quantiles[b, i], g) - 1 for g in samples[b, i]]
        np.testing.assert_allclose(out[b, i], np.mean(ranks), atol=1e-6)
    assert out.min() >= -1 and out.max() <= 1
    far = advantages(config, frozen, quantiles, samples.at[0].set(1e9).at[1].set(-1e9))
    np.testing.assert_array_equal(far[:2], [[1.0] * 4, [-1.0] * 4])


def test_rank_ignores_monotone_distortions():
    frozen, quantiles, samples = parts()
    config = DFPOConfig(PolicyConfig(advantage="rank"))
    plain = advantages(config, frozen, quantiles, samples)
    for distort in (lambda x: 100 * x - 7, jnp.sinh, lambda x: jnp.where(x > 0, 1e4 * x, x)):
        bent = advantages(config, frozen, distort(quantiles), distort(samples))
        np.testing.assert_array_equal(plain, bent)
    gae = dataclasses.replace(config, policy=PolicyConfig())
    bent = advantages(gae, frozen, 100 * quantiles, samples)
    assert np.any(advantages(gae, frozen, quantiles, samples) != bent)


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measure": "var"}, "measure is 'var'.*mean, cvar, mean_cvar, wang"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"eta": -0.5}, "eta is -0.5"),
        ({"wang_shift": math.nan}, "wang_shift is nan"),
    ],
)
def test_bad_risk_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        RiskConfig(**options)
