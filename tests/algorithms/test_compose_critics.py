"""What every critic has in an algorithm: policy terms, gradients, tokens that do not count."""

import dataclasses

import jax
import numpy as np
import pytest
import reference
import tiny
from critic_cases import CRITICS, KEY, LOSS_WEIGHT, OBJECTIVE, TEMPERATURE, critic_case
from reference_policy import log_probs
from tiny import ragged_rollout

from dfpo_jax.critics import TRUNKS

# Which trunk there is does not depend on the critic: more than one critic on each takes long.
PAIRS = [
    pytest.param(name, trunk, marks=[] if trunk == "own" or name == "scalar" else pytest.mark.slow)
    for name in CRITICS
    for trunk in TRUNKS
]


def same(first, second, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=2e-6), first, second)


def finite(tree):
    return all(np.isfinite(x).all() for x in jax.tree.leaves(tree))


# --- terms --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CRITICS)
def test_first_update_starts_at_the_old_policy(name):
    this = critic_case(name)
    terms, _ = this.run()
    assert 0 <= float(terms["policy/kl_old"].total) < 1e-9
    assert float(terms["policy/clip_fraction"].total) == 0.0
    rollout = this.rollout
    old = log_probs(this.state.params["policy"], rollout, TEMPERATURE)
    importance = np.minimum(np.exp(old - rollout.log_probs), OBJECTIVE.importance_cap)
    mean = reference.aggregate(
        np.asarray(this.batch.advantages) * importance, rollout.mask, "sequence_mean"
    )
    term = terms["policy/loss"]
    np.testing.assert_allclose(term.total / term.count, -mean, atol=1e-5)
    assert float(term.weight) == 1.0
    assert float(terms["policy/kl"].total) > 0
    coefficient = this.state.controls["kl_coefficient"]
    np.testing.assert_allclose(terms["policy/kl"].weight, coefficient)
    np.testing.assert_allclose(terms["policy/entropy"].weight, -OBJECTIVE.entropy.coefficient)


@pytest.mark.parametrize("name", CRITICS)
def test_kl_is_zero_where_the_reference_is_the_policy(name):
    this = critic_case(name)
    state = this.state.replace(reference=this.state.params["policy"])
    terms, _ = this.run(batch=this.prepare(state, this.rollout, KEY)[0])
    assert 0 <= float(terms["policy/kl"].total) < 1e-9


@pytest.mark.parametrize("name", CRITICS)
def test_policy_is_silent_during_warm_up(name):
    this = critic_case(name)
    for step, scale in ((2, 0.0), (3, 1.0)):
        _, context = this.prepare(this.state.replace(step=np.int32(step)), this.rollout, KEY)
        assert float(context.policy_scale) == scale


@pytest.mark.parametrize(("name", "trunk"), PAIRS)
def test_critic_terms_are_the_critics_losses_on_the_states_of_its_trunk(name, trunk):
    this = critic_case(name, trunk)
    terms, _ = this.run(this.moved)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, this.batch.row)
    losses = this.critic.losses(
        this.moved["critic"]["head"],
        this.states(this.moved),
        this.batch.critic,
        this.state.params["critic"]["head"],
        keys,
    )
    assert {f"critic/{x}" for x in losses} == {x for x in terms if x.startswith("critic/")}
    for loss_name, loss in losses.items():
        term, mask = terms[f"critic/{loss_name}"], this.rollout.mask
        counted = mask if loss.mask is None else np.asarray(loss.mask)
        total = np.sum(np.asarray(loss.per_token), where=counted > 0)
        np.testing.assert_allclose(term.total, total, rtol=1e-4, atol=1e-5, err_msg=loss_name)
        assert float(term.count) == counted.sum() > 0 and np.all(counted <= mask)
        np.testing.assert_allclose(term.weight, LOSS_WEIGHT * loss.weight, rtol=1e-6)


# --- gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "trunk"), PAIRS)
def test_what_was_prepared_gets_no_gradient(name, trunk):
    this = critic_case(name, trunk)
    _, grads = this.run(this.moved)
    inputs = {**grads["batch"], **grads["context"]}
    for field in (".old_log_probs", ".ref_log_probs", ".importance", ".advantages"):
        assert field in inputs
    assert any(key.startswith(".critic") for key in grads["batch"])
    assert any(key.startswith(".critic") for key in grads["context"])
    assert ".controls['kl_coefficient']" in grads["context"]
    for key, grad in inputs.items():
        np.testing.assert_array_equal(grad, 0.0, err_msg=key)
    assert all(np.any(np.asarray(g)) for g in jax.tree.leaves(grads["params"]["policy"]))


@pytest.mark.parametrize(("name", "trunk"), PAIRS)
def test_critic_gradient_reaches_the_policy_only_through_a_shared_trunk(name, trunk):
    """With a policy scale of 0 only the critic is left of the objective."""
    this = critic_case(name, trunk)
    context = this.context.replace(policy_scale=np.float32(0.0))
    _, grads = this.run(this.moved, context=context)
    policy, critic = grads["params"]["policy"], grads["params"]["critic"]
    np.testing.assert_array_equal(policy["head"], 0.0)
    assert np.any(policy["embedding"]) == (trunk == "shared")
    assert all(np.any(np.asarray(g)) for g in jax.tree.leaves(critic))
    assert ("trunk" in critic) == (trunk == "own")
    if trunk == "own":
        assert set(critic["trunk"]) == {"embedding"}


# --- rows and tokens that do not count ----------------------------------------------------------


@pytest.mark.parametrize("name", CRITICS)
def test_an_empty_row_contributes_nothing(name):
    this = critic_case(name)
    terms, grads = this.run(this.moved)
    assert finite((terms, grads))
    assert np.asarray(this.batch.mask)[3].sum() == 0
    # Any other response may stand in that row, as long as nothing of it counts.
    rows = np.asarray([0, 1, 2, 0, 4, 5, 6, 7])
    rollout = dataclasses.replace(tiny.take(this.rollout, rows), mask=this.rollout.mask)
    other, _ = this.prepare(this.state, rollout, KEY)
    whole = tiny.take(this.batch, rows)
    other = whole.replace(row=this.batch.row, mask=this.batch.mask, critic=other.critic)
    assert np.any(np.asarray(other.advantages)[3]) and np.any(np.asarray(other.valid)[3, 4:])
    changed = this.run(this.moved, other)
    same((terms, grads["params"]), (changed[0], changed[1]["params"]))


@pytest.mark.parametrize("name", CRITICS)
def test_what_lies_outside_the_mask_changes_nothing(name):
    this = critic_case(name)
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


@pytest.mark.parametrize("name", CRITICS)
def test_single_tokens_and_empty_batches_are_finite(name):
    rollout = ragged_rollout()
    one = np.zeros_like(rollout.mask)
    one[2, 0] = 1
    this = critic_case(name)
    for mask, count in ((one, 1), (0 * one, 0)):
        batch, _ = this.prepare(this.state, rollout.replace(mask=mask), KEY)
        np.testing.assert_array_equal(batch.advantages, 0.0)  # nothing to compare it with
        terms, grads = this.run(batch=batch)
        assert finite((batch.critic, terms, grads))
        counts = [float(term.count) for name, term in terms.items() if name.startswith("critic/")]
        assert max(counts) == count
        head = jax.tree.leaves(grads["params"]["critic"]["head"])
        assert any(np.any(grad) for grad in head) == (count > 0)
