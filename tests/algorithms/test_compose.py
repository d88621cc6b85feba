"""What a composed algorithm prepares: advantages, targets, predictions, controls."""

import jax
import numpy as np
import pytest
import reference
import reference_critic
from critic_cases import INTEGRATED, KEY, LAMBDA, TEMPERATURE, WARMUP, Case, critic_case
from reference_policy import after_last, kl, log_probs, shaped_rewards, valid_slots
from tiny import Markov

from dfpo_jax import ops
from dfpo_jax.advantages import Advantages, Gae, Rank, Risk, Sigma
from dfpo_jax.algorithms import AlgorithmConfig, Returns, compose
from dfpo_jax.algorithms.interface import Observed
from dfpo_jax.critics import Critics
from dfpo_jax.objectives import Kl, Objectives

CVAR = Risk("cvar", alpha=0.3)
# Critic, trunk, advantage and other settings.
CASES = {
    "scalar": ("scalar", "own", Gae(0.9), {"overlong": "terminal", "discount": 1.0}),
    "scalar, plain": ("scalar", "own", Gae(0.9), {"whiten": False, "discount": 0.8}),
    "scalar, masked": ("scalar", "shared", Gae(0.9), {"overlong": "mask"}),
    "scalar, adaptive": ("scalar", "detached", Gae(length_adaptive_alpha=0.4), {}),
    "quantile, cvar": ("quantile", "own", Gae(0.9, risk=CVAR), {"whiten": False}),
    "quantile, sigma": ("quantile", "detached", Sigma(0.9, floor=0.2), {}),
    "flow": ("flow", "own", Gae(0.9), {}),
    "quantile, shared": ("quantile", "shared", Gae(0.9), {"overlong": "terminal"}),
    "flow, integrated": ("flow", "detached", Gae(0.9), {"flow": INTEGRATED}),
}


def case(name):
    critic, trunk, advantage, options = CASES[name]
    return critic_case(critic, trunk, advantage, **options)


def expected_rewards(this, mask, bootstrap):
    return shaped_rewards(
        this.state.controls,
        mask,
        this.rollout.rewards,
        bootstrap,
        discount=this.config.returns.discount,
    )


@pytest.mark.parametrize("name", CASES)
def test_advantages_equal_loops_over_the_critics_law(name):
    this = case(name)
    rollout, returns, settings = this.rollout, this.config.returns, this.config.advantage.chosen
    masked = returns.overlong == "mask"
    mask = rollout.mask * ~rollout.truncated[:, None] if masked else rollout.mask
    bootstrap = rollout.truncated * (returns.overlong == "bootstrap")
    values = this.law.mean(axis=-1)
    if settings.risk == CVAR:
        values = np.apply_along_axis(reference_critic.tail_mean, -1, this.law, 0.3)
    rewards, end = expected_rewards(this, mask, bootstrap), after_last(values, mask, bootstrap)
    lambda_ = 0.9
    if settings.length_adaptive_alpha:
        lambda_ = np.maximum(0, 1 - 1 / (0.4 * np.maximum(mask.sum(axis=1), 1)))
    expected, _ = reference.gae(rewards, values[:, :-1], mask, returns.discount, lambda_, end)
    if this.config.advantage.name == "sigma":
        expected = expected / (this.law[:, :-1].std(axis=-1) + 0.2)
    if this.config.advantage.whiten:
        expected = reference.masked_whiten(expected, mask)
    np.testing.assert_array_equal(this.batch.mask, mask)
    np.testing.assert_allclose(this.batch.advantages, expected, atol=5e-5)
    if name.startswith("scalar"):  # the critic's lambda is not the advantage's
        goal = reference.gae(rewards, values[:, :-1], mask, returns.discount, LAMBDA, end)[1]
        np.testing.assert_allclose(this.batch.critic.returns * mask, goal, atol=2e-5)
    assert np.ptp(values) > 0.1


@pytest.mark.parametrize("name", ["scalar", "quantile, sigma", "flow, integrated"])
def test_predictions_are_in_units_of_reward(name):
    this = case(name)
    shift, scale = (float(this.state.controls[f"value_{x}"]) for x in ("shift", "scale"))
    predicted = jax.jit(this.algorithm.predict)(this.state, this.rollout)
    np.testing.assert_allclose(predicted, this.law[:, :-1] * scale + shift, atol=2e-5)


def test_predicted_values_give_the_advantages():
    """The advantages follow from what `predict` says, in raw units, for terminal rows."""
    options = {"whiten": False, "discount": 1.0, "overlong": "terminal"}
    this = critic_case("scalar", **options)
    values = np.asarray(this.algorithm.predict(this.state, this.rollout))[..., 0]
    mask = this.rollout.mask
    raw_rewards = reference.last_valid(mask) * this.rollout.rewards[:, None]
    raw, _ = reference.gae(raw_rewards, values, mask, 1.0, 0.9)
    expected = raw / float(this.state.controls["value_scale"])
    np.testing.assert_allclose(this.batch.advantages, expected, atol=2e-5)


def test_trajectories_run_from_the_noise_to_the_quantiles():
    this = case("flow, integrated")  # which integrates in the 16 steps that are drawn
    paths = np.asarray(jax.jit(this.algorithm.trajectories)(this.state, this.rollout))
    assert paths.shape == (17, 8, 5)
    grid = np.asarray(ops.noise_quantiles(5))
    np.testing.assert_allclose(paths[0], np.broadcast_to(grid, (8, 5)), atol=1e-6)
    np.testing.assert_allclose(np.sort(paths[-1]), this.law[:, 0], atol=1e-5)


# --- the rank, which samples returns of its own -------------------------------------------------


def test_rank_places_the_observed_return_in_the_critics_distribution():
    """With a lambda that adapts to 1."""
    adaptive = Rank(length_adaptive_alpha=1e9)
    this = critic_case("quantile", "own", adaptive, whiten=False, overlong="mask")
    kept = this.rollout.mask * ~this.rollout.truncated[:, None]
    rewards, expected = expected_rewards(this, kept, np.zeros(8)), np.zeros_like(kept)
    for b, row in enumerate(kept):
        total = 0.0
        for i in reversed(valid_slots(row)):
            total = rewards[b, i] + 0.9 * total
            expected[b, i] = 2 * reference.cdf(this.law[b, i], total) - 1
    np.testing.assert_array_equal(this.batch.mask, kept)
    np.testing.assert_allclose(this.batch.advantages, expected, atol=1e-5)


def test_rank_takes_the_returns_of_the_policys_lambda():
    """At 0 a reward and the law of the next valid state, at any lambda of the critic."""
    this = critic_case("quantile", "own", Rank(0.0), whiten=False)
    truncated, law = this.rollout.truncated, this.law
    rewards = expected_rewards(this, this.rollout.mask, truncated)
    spreads = []
    for b, row in enumerate(this.rollout.mask):
        slots = valid_slots(row)
        for i in slots:
            following = next((j for j in slots if j > i), i + 1)
            goals = rewards[b, i] + 0.9 * law[b, following]
            if i == slots[-1] and not truncated[b]:
                goals = rewards[b, i : i + 1]
            ranks = [2 * reference.cdf(law[b, i], goal) - 1 for goal in goals]
            np.testing.assert_allclose(this.batch.advantages[b, i], np.mean(ranks), atol=1e-5)
            spreads.append(np.std(ranks))
    assert np.median(spreads) > 0.1


# --- without a critic ---------------------------------------------------------------------------


@pytest.mark.parametrize("overlong", ["terminal", "mask"])
@pytest.mark.parametrize("whiten", [False, True])
def test_group_advantages_are_those_of_the_responses(whiten, overlong):
    config = AlgorithmConfig(
        Critics("none", warmup=5),  # of a critic that is not there
        Advantages("group", whiten=whiten),
        returns=Returns(overlong=overlong),
    )
    this = Case(config)
    rewards, mask = this.rollout.rewards, this.rollout.mask
    if overlong == "mask":
        mask = mask * ~this.rollout.truncated[:, None]
    expected = reference.group_relative(rewards, 2, True)[:, None] * mask
    if whiten:
        expected = reference.masked_whiten(expected, mask)
    np.testing.assert_allclose(this.batch.advantages, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(this.batch.mask, mask)
    assert float(this.context.policy_scale) == 1.0 and int(this.state.step) == WARMUP < 5
    assert (this.batch.critic, this.context.critic) == (None, None)
    terms = jax.eval_shape(this.algorithm.loss, this.state.params, this.batch, this.context, KEY)
    assert all(term.startswith("policy/") for term in terms)


def test_the_loss_of_grpo_is_the_clipped_surrogate_and_the_kl():
    config = AlgorithmConfig(
        Critics("none"), Advantages("group", whiten=False), Objectives(kl=Kl(0.1))
    )
    this = Case(config)
    terms = jax.jit(this.algorithm.loss)(this.moved, this.batch, this.context, KEY)
    ours, old, start = (
        log_probs(params, this.rollout, TEMPERATURE)
        for params in (this.moved["policy"], this.state.params["policy"], this.state.reference)
    )
    mask, advantages = this.rollout.mask, np.asarray(this.batch.advantages, float)
    surrogate = reference.ppo_clip(ours, old, advantages, 0.2, 0.2, None)
    assert terms["policy/loss"].total == pytest.approx((surrogate * mask).sum(), rel=1e-4)
    assert terms["policy/loss"].count == mask.sum()
    assert terms["policy/kl"].total == pytest.approx((kl(ours, start, "k3") * mask).sum(), rel=1e-4)
    coefficient = float(this.state.controls["kl_coefficient"])
    assert terms["policy/kl"].weight == pytest.approx(coefficient)


# --- what an algorithm has ----------------------------------------------------------------------


def test_networks_and_functions_follow_from_the_parts():
    for name, part in Critics().parts.items():
        critic = part.build()
        advantage = "group" if critic is None else "gae"
        built = compose(Markov(), AlgorithmConfig(Critics(name), Advantages(advantage)), 1.0)
        assert built.networks == (("policy",) if critic is None else ("policy", "critic"))
        assert (built.predict is None) == (critic is None)
        assert (built.trajectories is None) == (critic is None or critic.paths is None)
        assert not built.keeps_reference
        params = jax.eval_shape(built.init, jax.random.key(0), {"embedding": np.zeros((20, 16))})
        assert set(params) == set(built.networks)


def test_controls_are_observed_before_and_adapted_after_an_iteration():
    kl_terms = Objectives(kl=Kl(0.2, target=0.05, horizon=10))
    built = compose(Markov(), AlgorithmConfig(Critics("scalar"), objective=kl_terms), 1.0)
    assert built.controls == {"value_shift": 0.0, "value_scale": 1.0, "kl_coefficient": 0.2}
    assert built.keeps_reference
    controls = {**built.controls, "kl_coefficient": 0.7}
    observed = built.observe(controls, Observed([0.0, 3.0], range=(-1.0, 5.0)))
    assert observed == {"value_shift": 2.0, "value_scale": 3.0, "kl_coefficient": 0.7}
    adapted = built.adapt(observed, {"policy/kl": 5.0})
    assert float(adapted.pop("kl_coefficient")) == pytest.approx(0.7 * (1 + 0.2 / 10))
    assert adapted == {"value_shift": 2.0, "value_scale": 3.0}
    kl_terms = Objectives(kl=Kl(0.2))
    fixed = compose(Markov(), AlgorithmConfig(Critics("scalar"), objective=kl_terms), 1.0)
    assert fixed.observe(controls, Observed([0.0], range=(0.0, 1.0)))["kl_coefficient"] == 0.2
