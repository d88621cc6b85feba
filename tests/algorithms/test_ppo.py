"""PPO: values, advantages, the clipped value loss, and what its gradients reach."""

import functools

import jax
import numpy as np
import pytest
import reference
import tiny
from reference_policy import after_last, shaped_rewards, state_tokens
from tiny import Markov, fast_compile, ragged_rollout  # noqa: F401

from dfpo_jax.algorithms.base import PolicyConfig
from dfpo_jax.algorithms.critic import CriticConfig
from dfpo_jax.algorithms.ppo import PPOConfig, ppo

pytestmark = pytest.mark.usefixtures("fast_compile")

KEY = jax.random.key(5)


def make(trunk="own", value_clip=0.0, **options):
    critic = CriticConfig(trunk, critic_lambda=0.8, warmup=3, loss_weight=0.7)
    config = PPOConfig(PolicyConfig(gae_lambda=0.9, **options), critic, value_clip)
    return ppo(Markov(), config, 0.8)


class Case:
    """One configuration on the ragged rows: state, batch, and jitted losses with gradients."""

    def __init__(self, **options):
        self.algorithm = make(**options)
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


case = functools.cache(Case)
# Every policy term is on.
FULL = {
    "kl_coefficient": 0.1,
    "entropy_coefficient": 0.01,
    "importance_cap": 2.0,
    "aggregation": "sequence_mean",
}


def table_of_values(state, trunk="own"):
    """[V] normalised value of each token as a state."""
    critic = state.params["critic"]
    embedding = (critic["trunk"] if trunk == "own" else state.params["policy"])["embedding"]
    layer = critic["head"]["output"]
    return (embedding.astype(float) @ layer["kernel"] + layer["bias"])[:, 0]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"trunk": "shared", "discount": 0.9, "whiten": False},
        {"trunk": "detached", "overlong": "bootstrap", "length_adaptive_alpha": 0.4},
        {"overlong": "bootstrap", "whiten": False, "discount": 0.8},
        {"overlong": "mask"},
    ],
)
def test_prepare_equals_loops(options):
    this = case(**options)
    state, rollout, batch = this.state, this.rollout, this.batch
    trunk, discount = options.get("trunk", "own"), options.get("discount", 1.0)
    overlong = options.get("overlong", "terminal")
    mask = rollout.mask * ~rollout.truncated[:, None] if overlong == "mask" else rollout.mask
    bootstrap = rollout.truncated * (overlong == "bootstrap")
    values = table_of_values(state, trunk)[state_tokens(rollout)]
    rewards = shaped_rewards(state, mask, rollout.rewards, bootstrap, discount=discount)
    end = after_last(values, mask, bootstrap)
    lambda_ = 0.9
    if "length_adaptive_alpha" in options:
        lambda_ = np.maximum(0, 1 - 1 / (0.4 * np.maximum(mask.sum(axis=1), 1)))
    advantages, _ = reference.gae(rewards, values[:, :-1], mask, discount, lambda_, end)
    if options.get("whiten", True):
        advantages = reference.masked_whiten(advantages, mask)
    _, returns = reference.gae(rewards, values[:, :-1], mask, discount, 0.8, end)
    np.testing.assert_array_equal(batch.mask, mask)
    np.testing.assert_allclose(batch.advantages, advantages, atol=2e-5)
    np.testing.assert_allclose(batch.critic.returns * mask, returns, atol=2e-5)
    np.testing.assert_allclose(batch.critic.old_values, values[:, :-1], atol=1e-5)
    predicted = jax.jit(this.algorithm.predict)(state, rollout)
    expected = values[:, :-1, None] * float(state.value_scale) + float(state.value_shift)
    np.testing.assert_allclose(predicted, expected, atol=1e-5)
    assert np.ptp(values) > 0.5


def test_predicted_values_give_the_advantages():
    """The advantages follow from what `predict` says, in raw units, for terminal rows."""
    this = case(whiten=False)
    values = np.asarray(this.algorithm.predict(this.state, this.rollout))[..., 0]
    mask = this.rollout.mask
    raw_rewards = reference.last_valid(mask) * this.rollout.rewards[:, None]
    raw, _ = reference.gae(raw_rewards, values, mask, 1.0, 0.9)
    expected = raw / float(this.state.value_scale)
    np.testing.assert_allclose(this.batch.advantages, expected, atol=2e-5)


@pytest.mark.parametrize("value_clip", [0.0, 0.1])
def test_value_loss_equals_a_loop(value_clip):
    this = case(value_clip=value_clip)
    params = {**this.state.params, "critic": tiny.randomised(this.state.params["critic"], 9)}
    terms, _ = this.run(params)
    live = table_of_values(this.state.replace(params=params))[state_tokens(this.rollout)][:, :-1]
    old, returns = np.asarray(this.batch.critic.old_values), np.asarray(this.batch.critic.returns)
    total = 0.0
    for index in zip(*np.nonzero(this.rollout.mask), strict=True):
        error = (live[index] - returns[index]) ** 2
        if value_clip:
            move = min(max(live[index] - old[index], -value_clip), value_clip)
            error = max(error, (old[index] + move - returns[index]) ** 2)
        total += 0.5 * error
    term = terms["critic/loss"]
    np.testing.assert_allclose(term.total, total, rtol=1e-4)
    assert float(term.count) == this.rollout.mask.sum()
    np.testing.assert_allclose(term.weight, 0.7, rtol=1e-6)


def test_first_update_starts_at_the_old_policy():
    this = case(trunk="own", **FULL)
    terms, _ = this.run()
    assert 0 <= float(terms["policy/kl_old"].total) < 1e-9
    assert float(terms["policy/clip_fraction"].total) == 0.0
    gain = np.asarray(this.batch.advantages * this.batch.importance)
    mean = reference.aggregate(gain, this.rollout.mask, "sequence_mean")
    term = terms["policy/loss"]
    np.testing.assert_allclose(term.total / term.count, -mean, atol=1e-6)
    assert float(terms["policy/kl"].total) > 0
    np.testing.assert_allclose(terms["policy/kl"].weight, this.state.kl_coefficient)


def test_kl_is_zero_where_the_reference_is_the_policy():
    this = case(trunk="own", **FULL)
    state = this.state.replace(reference=this.state.params["policy"])
    terms, _ = this.run(batch=this.prepare(state, this.rollout, KEY)[0])
    assert 0 <= float(terms["policy/kl"].total) < 1e-9


@pytest.mark.parametrize("trunk", ["own", "shared", "detached"])
def test_frozen_inputs_get_no_gradient(trunk):
    this = case(trunk=trunk, **FULL)
    params = tiny.randomised(this.state.params, seed=8, scale=0.1)
    _, grads = this.run(params)
    inputs = {**grads["batch"], **grads["context"]}
    for name in (".old_log_probs", ".ref_log_probs", ".importance", ".critic.returns"):
        assert name in inputs
    for name, grad in inputs.items():
        np.testing.assert_array_equal(grad, 0.0, err_msg=name)
    assert all(np.any(np.asarray(g)) for g in jax.tree.leaves(grads["params"]["policy"]))


@pytest.mark.parametrize("trunk", ["own", "shared", "detached"])
def test_critic_gradient_reaches_the_policy_only_through_a_shared_trunk(trunk):
    """With a policy scale of 0 only the critic is left of the objective."""
    this = case(trunk=trunk, **FULL)
    context = this.context.replace(policy_scale=np.float32(0.0))
    _, grads = this.run(tiny.randomised(this.state.params, seed=8, scale=0.1), context=context)
    policy, critic = grads["params"]["policy"], grads["params"]["critic"]
    np.testing.assert_array_equal(policy["head"], 0.0)
    assert np.any(policy["embedding"]) == (trunk == "shared")
    assert all(np.any(np.asarray(g)) for g in jax.tree.leaves(critic))
    assert ("trunk" in critic) == (trunk == "own")
    if trunk == "own":
        assert set(critic["trunk"]) == {"embedding"}


def same(first, second, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), first, second)


def test_an_empty_row_contributes_nothing():
    this = case(trunk="own", **FULL)
    rows = np.asarray([0, 1, 2, 4, 5, 6, 7])  # all but the empty one
    params = tiny.randomised(this.state.params, seed=8, scale=0.1)
    terms, grads = this.run(params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((terms, grads)))
    without = this.run(params, tiny.take(this.batch, rows))
    same((terms, grads["params"]), (without[0], without[1]["params"]))


def test_what_lies_outside_the_mask_changes_nothing():
    this = case(trunk="own", **FULL)
    rollout, outside = this.rollout, this.rollout.mask == 0
    outside[1, 1] = False  # a gap is read by the model
    changed = rollout.replace(
        prompt_tokens=np.where(rollout.prompt_mask > 0, rollout.prompt_tokens, 7),
        tokens=np.where(outside, 7, rollout.tokens),
        log_probs=np.where(rollout.mask > 0, rollout.log_probs, -9.0),
        rewards=np.where(rollout.mask.sum(axis=1) > 0, rollout.rewards, 99.0),
    )
    batch, _ = this.prepare(this.state, changed, KEY)
    np.testing.assert_array_equal(batch.advantages, this.batch.advantages)
    first, second = this.run(), this.run(batch=batch)
    same((first[0], first[1]["params"]), (second[0], second[1]["params"]))


def test_single_tokens_and_empty_batches_are_finite():
    rollout = ragged_rollout()
    one = np.zeros_like(rollout.mask)
    one[2, 0] = 1
    this = case(trunk="own", **FULL)
    for mask, count in ((one, 1), (0 * one, 0)):
        batch, _ = this.prepare(this.state, rollout.replace(mask=mask), KEY)
        np.testing.assert_array_equal(batch.advantages, 0.0)  # nothing to compare it with
        terms, grads = this.run(batch=batch)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((terms, grads)))
        assert float(terms["critic/loss"].count) == count
        assert np.any(grads["params"]["critic"]["head"]["output"]["bias"]) == (count > 0)


def test_policy_is_silent_during_warm_up():
    this = case(trunk="own", **FULL)
    for step, scale in ((2, 0.0), (3, 1.0)):
        _, context = this.prepare(this.state.replace(step=np.int32(step)), this.rollout, KEY)
        assert float(context.policy_scale) == scale


def test_an_advantage_that_needs_a_distribution_is_refused():
    for advantage in ("rank", "sigma"):
        with pytest.raises(ValueError, match=f"policy.advantage is '{advantage}'.*allows gae"):
            PPOConfig(PolicyConfig(advantage=advantage))
    with pytest.raises(ValueError, match="value_clip is -1"):
        PPOConfig(value_clip=-1.0)
