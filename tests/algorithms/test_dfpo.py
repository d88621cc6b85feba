"""DFPO: what `prepare` reads from the flow, its advantages, and what its gradients reach."""

import dataclasses
import functools
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import reference_critic
import tiny
from reference_policy import after_last, shaped_rewards, state_tokens, valid_slots
from tiny import Markov, fast_compile, ragged_rollout  # noqa: F401

from dfpo_jax import ops
from dfpo_jax.algorithms.base import PolicyConfig
from dfpo_jax.algorithms.critic import TRUNKS, CriticConfig
from dfpo_jax.algorithms.dfpo import DFPOConfig, RiskConfig, advantages, dfpo
from dfpo_jax.algorithms.flow_critic import FlowCriticConfig
from dfpo_jax.models import ValueFlow

pytestmark = pytest.mark.usefixtures("fast_compile")

KEY = jax.random.key(5)

# Few configurations, each compiled once, that cover the options between them.
POLICY = {"kl_coefficient": 0.1, "entropy_coefficient": 0.01, "importance_cap": 2.0}
LIGHT = FlowCriticConfig(num_samples=4, num_steps=2, num_quantiles=5)
INTEGRATED = FlowCriticConfig(
    num_samples=1000,
    num_steps=16,
    first_step=1.0,
    solver="euler",
    num_quantiles=5,
    inference="ode",
    uncertainty="discount",
    uncertainty_temperature=0.5,
)
CASES = {
    # Every loss and policy term.
    "own": {**POLICY, "overlong": "bootstrap", "flow": tiny.FLOW},
    "shared": {
        **POLICY,
        "measure": "cvar",
        "critic_lambda": 1.0,
        "discount": 0.9,
        "whiten": False,
    },
    "detached": {
        **POLICY,
        "measure": "mean_cvar",
        "overlong": "bootstrap",
        "flow": INTEGRATED,
        "critic_lambda": 0.0,
        "discount": 0.9,
    },
    "average": {
        "advantage": "sigma",
        "sigma_floor": 0.2,
        "overlong": "bootstrap",
        "flow": dataclasses.replace(LIGHT, target_mode="average"),
        "discount": 0.9,
    },
    # A lambda that adapts to 1: returns as observed.
    "rank": {
        "advantage": "rank",
        "overlong": "mask",
        "whiten": False,
        "length_adaptive_alpha": 1e9,
        "discount": 0.9,
    },
}


class Case:
    """A configuration on the ragged rows: state, batch, and jitted losses with gradients."""

    def __init__(self, name):
        options = {"flow": LIGHT, "measure": "mean", "critic_lambda": 0.8, **CASES[name]}
        self.trunk = name if name in TRUNKS else "own"
        self.measure, self.critic_lambda = options.pop("measure"), options.pop("critic_lambda")
        self.config = DFPOConfig(
            flow=options.pop("flow"),
            policy=PolicyConfig(gae_lambda=0.9, **options),
            critic=CriticConfig(self.trunk, self.critic_lambda, warmup=3, loss_weight=0.7),
            head=tiny.HEAD,
            risk=RiskConfig(self.measure, alpha=0.3, eta=0.4),
        )
        self.algorithm = dfpo(Markov(), self.config, 0.8)
        self.rollout = ragged_rollout()
        self.state = tiny.make_state(self.algorithm, step=3)
        self.prepare = jax.jit(self.algorithm.prepare)
        self.batch, self.context = self.prepare(self.state, self.rollout, KEY)
        self.losses = tiny.evaluator(self.algorithm)

    def run(self, params=None, batch=None, context=None):
        return self.losses(
            self.state.params if params is None else params,
            self.batch if batch is None else batch,
            self.context if context is None else context,
            KEY,
        )

    def table(self, noise):
        """[V, S] what the flow makes of noise [S] in the state of each token, by Euler steps."""
        critic, flow = self.state.params["critic"], self.config.flow
        trunk = critic["trunk"] if self.trunk == "own" else self.state.params["policy"]
        head = ValueFlow(tiny.HEAD)
        params = {"params": critic["head"]}
        condition = head.apply(params, trunk["embedding"], method="condition")

        def velocity(z, t, d):
            return np.asarray(head.apply(params, condition, z, t, d, method="velocity"), float)

        z = np.broadcast_to(np.asarray(noise, np.float32), (tiny.VOCAB, len(noise)))
        if flow.inference == "one_step":
            return z + velocity(z, 0.0, 1.0)
        widths = np.array([flow.first_step] + [1.0] * (flow.num_steps - 1))
        widths, begin = widths / widths.sum(), 0.0
        for width in widths:
            z, begin = z + velocity(z, begin, 0.0) * width, begin + width
        return z

    def quantiles(self):
        """[B, R + 1, M] sorted quantiles at s_0 .. s_R."""
        grid = np.asarray(ops.noise_quantiles(self.config.flow.num_quantiles))
        return np.sort(self.table(grid), axis=-1)[state_tokens(self.rollout)]


case = functools.cache(Case)


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


@pytest.mark.parametrize("name", ["own", "shared", "rank"])
def test_the_last_token_has_a_successor_only_where_it_bootstraps(name):
    this = case(name)
    expected = np.zeros_like(this.rollout.mask)
    for b, row in enumerate(np.asarray(this.batch.mask)):
        slots = valid_slots(row)
        continues = name == "own" and this.rollout.truncated[b]
        expected[b, slots if continues else slots[:-1]] = 1
    np.testing.assert_array_equal(this.batch.critic.has_successor, expected)
    if name == "own":
        terms, _ = this.run()
        assert float(terms["critic/dcfm"].count) == expected.sum()
        assert float(terms["critic/anchor"].count) == np.asarray(this.batch.mask).sum()


def test_uncertain_states_are_discounted():
    this = case("detached")
    grid, step = np.asarray(ops.noise_quantiles(1000), float), 1e-2
    slopes = (this.table(grid + step) - this.table(grid - step)) / (2 * step)
    sigma = np.abs(slopes).mean(axis=-1)[state_tokens(this.rollout)[:, :-1]]
    np.testing.assert_allclose(this.batch.critic.weight, 1 / (1 + (sigma / 0.5) ** 2), rtol=2e-3)
    np.testing.assert_array_equal(case("shared").batch.critic.weight, 1.0)


def test_the_uncertainty_weight_is_for_anchor_and_flow_matching_alone():
    this, terms = case("own"), []
    for factor in (1, 2):
        weight = np.full(this.rollout.mask.shape, factor, np.float32)
        critic = this.batch.critic.replace(weight=weight)
        terms.append(this.run(batch=this.batch.replace(critic=critic))[0])
    for name in terms[0]:
        factor = 2 if name in ("critic/anchor", "critic/dcfm") else 1
        np.testing.assert_allclose(terms[1][name].total, factor * terms[0][name].total, rtol=1e-6)


def test_every_weighted_loss_is_a_term():
    terms, _ = case("own").run()
    flow = tiny.FLOW
    for name, weight in {
        "anchor": flow.anchor_weight,
        "dcfm": flow.dcfm_weight,
        "geometry": flow.geometry_weight,
        "cvar": flow.cvar_weight,
        "upper_gain": flow.upper_gain_weight,
        "mean_shift": flow.mean_shift_weight,
        "tail_shape": flow.tail_shape_weight,
        "tail_curvature": flow.tail_curvature_weight,
    }.items():
        np.testing.assert_allclose(terms[f"critic/{name}"].weight, 0.7 * weight, rtol=1e-6)


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


# --- gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("trunk", TRUNKS)
def test_frozen_inputs_get_no_gradient(trunk):
    this = case(trunk)
    _, grads = this.run(tiny.randomised(this.state.params, seed=8, scale=0.1))
    inputs = {**grads["batch"], **grads["context"]}
    fields = ("samples", "rewards", "condition", "has_successor", "weight")
    for name in (".old_log_probs", ".ref_log_probs", *(f".critic.{field}" for field in fields)):
        assert name in inputs
    assert any(name.startswith(".frozen") for name in grads["context"])
    for name, grad in inputs.items():
        np.testing.assert_array_equal(grad, 0.0, err_msg=name)
    assert all(np.any(np.asarray(g)) for g in jax.tree.leaves(grads["params"]["policy"]))


@pytest.mark.parametrize("trunk", TRUNKS)
def test_critic_gradient_reaches_the_policy_only_through_a_shared_trunk(trunk):
    """With a policy scale of 0 only the critic is left of the objective."""
    this = case(trunk)
    context = this.context.replace(policy_scale=np.float32(0.0))
    _, grads = this.run(tiny.randomised(this.state.params, seed=8, scale=0.1), context=context)
    policy, critic = grads["params"]["policy"], grads["params"]["critic"]
    np.testing.assert_array_equal(policy["head"], 0.0)
    assert np.any(policy["embedding"]) == (trunk == "shared")
    assert all(np.any(np.asarray(g)) for g in jax.tree.leaves(critic))
    assert ("trunk" in critic) == (trunk == "own")


def same(first, second, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=2e-6), first, second)


def finite(tree):
    return all(np.isfinite(x).all() for x in jax.tree.leaves(tree))


def test_an_empty_row_contributes_nothing():
    this = case("own")
    params = tiny.randomised(this.state.params, seed=8, scale=0.1)
    terms, grads = this.run(params)
    assert finite((terms, grads))
    assert np.asarray(this.batch.mask)[3].sum() == 0
    # Anything else may stand in that row.
    other = tiny.take(this.batch, np.asarray([0, 1, 2, 0, 4, 5, 6, 7]))
    has_successor = this.batch.critic.has_successor
    other = other.replace(
        row=this.batch.row,
        mask=this.batch.mask,
        critic=other.critic.replace(has_successor=has_successor),
    )
    changed = this.run(params, other)
    same((terms, grads["params"]), (changed[0], changed[1]["params"]))


def test_what_lies_outside_the_mask_changes_nothing():
    this = case("own")
    rollout, outside = this.rollout, this.rollout.mask == 0
    outside[1, 1] = False  # a gap is read by the model
    changed = rollout.replace(
        prompt_tokens=np.where(rollout.prompt_mask > 0, rollout.prompt_tokens, 7),
        tokens=np.where(outside, 7, rollout.tokens),
        log_probs=np.where(rollout.mask > 0, rollout.log_probs, -9.0),
        rewards=np.where(rollout.mask.sum(axis=1) > 0, rollout.rewards, 99.0),
    )
    batch, _ = this.prepare(this.state, changed, KEY)
    np.testing.assert_allclose(batch.advantages, this.batch.advantages, atol=1e-6)
    first, second = this.run(), this.run(batch=batch)
    same((first[0], first[1]["params"]), (second[0], second[1]["params"]))


def test_single_tokens_and_empty_batches_are_finite():
    rollout = ragged_rollout()
    one = np.zeros_like(rollout.mask)
    one[2, 0] = 1
    this = case("own")
    for mask, count in ((one, 1), (0 * one, 0)):
        batch, _ = this.prepare(this.state, rollout.replace(mask=mask), KEY)
        np.testing.assert_array_equal(batch.advantages, 0.0)  # nothing to compare it with
        terms, grads = this.run(batch=batch)
        assert finite((batch.critic, terms, grads))
        assert float(terms["critic/anchor"].count) == count
        assert np.any(grads["params"]["critic"]["head"]["output"]["bias"]) == (count > 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measure": "var"}, "measure is 'var'.*mean, cvar, mean_cvar, wang"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"eta": -0.5}, "eta is -0.5"),
    ],
)
def test_bad_risk_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        RiskConfig(**options)
