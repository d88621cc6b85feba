"""GRPO, Dr. GRPO and RLOO against loops, and through a whole run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from reference_policy import log_probs
from tiny import Markov, make_state, ragged_rollout
from training import test_loop

from dfpo_jax.algorithms import ALGORITHMS, GroupConfig, GRPOConfig, PolicyConfig, grpo
from dfpo_jax.training.config import parse_config
from dfpo_jax.training.metrics import read_metrics

TEMPERATURE, KEY = 0.7, jax.random.key(0)


def relative(rewards, size, baseline, normalize):
    """A loop over responses."""
    out = []
    for k, reward in enumerate(rewards):
        group = [float(x) for x in rewards[k - k % size : k - k % size + size]]
        others = group[: k % size] + group[k % size + 1 :]
        if baseline == "leave_one_out":
            out.append(reward - np.mean(others))
        else:
            deviation = np.std(group, ddof=1) + 1e-6 if normalize else 1.0
            out.append((reward - np.mean(group)) / deviation)
    return np.array(out)


@functools.cache
def prepared(group, overlong="terminal", **policy):
    config = GRPOConfig(PolicyConfig(overlong=overlong, **policy), group, 4)
    algorithm = grpo(Markov(), config, TEMPERATURE)
    state, rollout = make_state(algorithm), ragged_rollout()
    batch, context = jax.jit(algorithm.prepare)(state, rollout, KEY)
    return algorithm, state, rollout, batch, context


@pytest.mark.parametrize("overlong", ["terminal", "mask"])
@pytest.mark.parametrize(
    "group", [GroupConfig(), GroupConfig(normalize=False), GroupConfig("leave_one_out", False)]
)
def test_every_token_has_its_response_advantage(group, overlong):
    _, _, rollout, batch, context = prepared(group, overlong, whiten=False, reward_clip=0.8)
    mask = rollout.mask
    if overlong == "mask":
        mask = mask * ~rollout.truncated[:, None]
    rewards = np.clip(rollout.rewards, -0.8, 0.8)
    assert np.ptp(rewards) > 0.1 and np.any(rollout.rewards != rewards)
    expected = relative(rewards, 4, group.baseline, group.normalize)
    np.testing.assert_allclose(batch.advantages, expected[:, None] * mask, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(batch.mask, mask)
    assert context.policy_scale == 1.0
    whitened = prepared(group, overlong, whiten=True, reward_clip=0.8)[3].advantages
    expected = reference.masked_whiten(expected[:, None] * mask, mask)
    np.testing.assert_allclose(whitened, expected, rtol=1e-4, atol=1e-4)


def test_the_loss_is_the_clipped_surrogate_and_the_kl():
    algorithm, state, rollout, batch, context = prepared(
        GroupConfig(), whiten=False, kl_coefficient=0.1
    )
    params = jax.tree.map(
        lambda x: x + 0.05 * np.sin(np.arange(x.size)).reshape(x.shape), state.params
    )
    terms = jax.jit(algorithm.loss)(params, batch, context, KEY)
    ours = log_probs(params["policy"], rollout, TEMPERATURE)
    old = log_probs(state.params["policy"], rollout, TEMPERATURE)
    start = log_probs(state.reference, rollout, TEMPERATURE)
    surrogate = kl = 0.0
    for b, i in zip(*np.nonzero(rollout.mask), strict=True):
        ratio, advantage = np.exp(ours[b, i] - old[b, i]), float(batch.advantages[b, i])
        surrogate -= min(ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage)
        kl += np.exp(start[b, i] - ours[b, i]) - 1 - (start[b, i] - ours[b, i])
    assert terms["policy/loss"].total == pytest.approx(surrogate, rel=1e-4)
    assert terms["policy/loss"].count == rollout.mask.sum()
    assert terms["policy/kl"].total == pytest.approx(kl, rel=1e-4)
    assert terms["policy/kl"].weight == pytest.approx(float(state.kl_coefficient))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group_size": 1}, "train.samples is 1; .* at least 2"),
        ({"policy": PolicyConfig(advantage="rank")}, "policy.advantage is 'rank'"),
        ({"policy": PolicyConfig(overlong="bootstrap")}, "overlong is 'bootstrap'; .* mask"),
        ({"policy": PolicyConfig(discount=0.9)}, "discount is 0.9; .* must be 1.0"),
        ({"policy": PolicyConfig(kl_coefficient=0.1, kl_in="reward")}, "kl_in is 'reward'"),
    ],
)
def test_what_needs_a_critic_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        GRPOConfig(**settings)
    with pytest.raises(ValueError, match="only 'mean' is normalised"):
        GroupConfig("leave_one_out")


@pytest.mark.slow
def test_a_run_without_a_critic(tmp_path):
    config = test_loop.tiny(iterations=2)
    config.algorithm = "grpo"
    config.critic.warmup = 5  # of a critic that is not there
    config.group.normalize = False
    results = test_loop.run_in(tmp_path, config)
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert not [key for row in rows for key in row if "critic" in key]
    assert rows[1]["policy/gradient_norm"] > 0.0
    assert 0.0 <= results["in_domain"]["after"] <= 1.0
    assert "<html" in (tmp_path / "report.html").read_text()


def test_an_algorithm_is_added_with_one_entry(tmp_path, monkeypatch):
    """REINFORCE with the reward as every token's advantage, and settings of its own."""

    def reinforce(model, scale, temperature):
        built = grpo(model, GRPOConfig(PolicyConfig(whiten=False), group_size=2), temperature)

        def prepare(state, rollout, key):
            batch, context = built.prepare(state, rollout, key)
            advantages = scale * jnp.asarray(rollout.rewards)[:, None] * batch.mask
            return batch.replace(advantages=advantages), context

        return built._replace(prepare=prepare)

    monkeypatch.setitem(ALGORITHMS, "reinforce", (reinforce, lambda c: c.policy.clip_low))
    config = test_loop.tiny(iterations=1)
    config.algorithm = "reinforce"
    assert parse_config(config).algorithm_config() == 0.2
    test_loop.run_in(tmp_path, config)
    assert [row["step"] for row in read_metrics(tmp_path)] == [0, 1]
