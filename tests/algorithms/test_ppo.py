"""PPO: values, advantages, and the clipped value loss."""

import jax
import numpy as np
import pytest
import reference
import tiny
from critic_cases import ppo_case as case
from reference_policy import after_last, shaped_rewards, state_tokens

from dfpo_jax.algorithms.base import PolicyConfig
from dfpo_jax.algorithms.ppo import PPOConfig


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


def test_an_advantage_that_needs_a_distribution_is_refused():
    for advantage in ("rank", "sigma"):
        with pytest.raises(ValueError, match=f"policy.advantage is '{advantage}'.*allows gae"):
            PPOConfig(PolicyConfig(advantage=advantage))
    with pytest.raises(ValueError, match="value_clip is -1"):
        PPOConfig(value_clip=-1.0)
