"""How objectives become terms: weights, aggregation, warm-up, and what gradients reach."""

import dataclasses
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import tiny
from policy_batch import CONTEXT, random_batch
from reference_policy import kl
from tiny import Markov, markov_params, ragged_rollout

from dfpo_jax.algorithms import AlgorithmConfig, compose, trunk
from dfpo_jax.algorithms.trunk import join_sequence
from dfpo_jax.critics import Critics
from dfpo_jax.critics.scalar import ScalarTargets
from dfpo_jax.objectives import Clip, Entropy, Kl, Objectives

KEY = jax.random.key(0)
ALL = Objectives(clip=Clip(0.9, 9.0), entropy=Entropy(0.01), kl=Kl(0.1))


@pytest.fixture
def policy_terms(monkeypatch):
    """(objectives, live, batch, context) -> terms of a policy with these log-probabilities."""
    sequence, valid = join_sequence(ragged_rollout())
    nothing = jnp.zeros(ragged_rollout().mask.shape)
    # A critic whose loss is left out: without one, nothing may add rewards of single tokens.
    critic, rows = Critics("scalar", trunk="detached"), ScalarTargets(nothing, nothing)

    def terms(objectives, live, batch, context=CONTEXT):
        module = sys.modules["dfpo_jax.algorithms.compose"]
        evaluate = trunk.evaluate

        def evaluated(*inputs):
            found = evaluate(*inputs)
            return found._replace(log_probs=live.log_probs, entropy=live.entropy)

        monkeypatch.setattr(module, "evaluate", evaluated)
        algorithm = compose(Markov(), AlgorithmConfig(critic, objective=objectives), 1.0)
        params = nn.unbox(algorithm.init(KEY, markov_params()))
        batch = batch.replace(sequence=sequence, valid=valid, critic=rows)
        found = algorithm.loss(params, batch, context, KEY)
        return {name: term for name, term in found.items() if name.startswith("policy/")}

    return terms


@pytest.mark.parametrize(
    ("aggregation", "dual", "kind"),
    [("token_mean", 0.0, "k1"), ("token_mean", 1.2, "k2"), ("sequence_mean", 1.2, "k3")],
)
def test_terms_equal_loops(policy_terms, aggregation, dual, kind):
    objectives = Objectives(
        aggregation=aggregation,
        clip=Clip(0.15, 0.3, dual),
        entropy=Entropy(0.01),
        kl=Kl(0.1, kind),
    )
    batch, live = random_batch()
    terms = policy_terms(objectives, live, batch)
    old, advantages, log_probs = batch.old_log_probs, batch.advantages, live.log_probs
    ratio = np.exp(log_probs - old)
    surrogate = reference.ppo_clip(log_probs, old, advantages, 0.15, 0.3, dual or None)
    outside = ((advantages > 0) & (ratio > 1.3)) | ((advantages < 0) & (ratio < 0.85))
    expected = {
        "policy/loss": (surrogate * batch.importance, 1.0),
        "policy/entropy": (live.entropy, -0.01),
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


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kl_to_oneself_is_zero_and_nothing_is_clipped(policy_terms, kind):
    batch, live = random_batch()
    old = batch.old_log_probs
    batch = batch.replace(ref_log_probs=old)
    terms = policy_terms(Objectives(kl=Kl(0.1, kind)), live._replace(log_probs=old), batch)
    for name in ("policy/kl", "policy/kl_old", "policy/clip_fraction"):
        assert float(terms[name].total) == 0.0
    mean = (batch.advantages * batch.importance)[batch.mask > 0].mean()
    term = terms["policy/loss"]
    np.testing.assert_allclose(term.total / term.count, -mean, rtol=1e-5)


def test_what_was_prepared_gets_no_gradient_and_only_valid_tokens_do(policy_terms):
    batch, live = random_batch()
    names = ["old_log_probs", "ref_log_probs", "importance", "advantages", "mask"]

    def loss(log_probs, entropy, prepared):
        now = live._replace(log_probs=log_probs, entropy=entropy)
        return tiny.objective(policy_terms(ALL, now, dataclasses.replace(batch, **prepared)))

    prepared = {name: jnp.asarray(getattr(batch, name)) for name in names}
    *grads, stopped = jax.grad(loss, (0, 1, 2))(live.log_probs, live.entropy, prepared)
    for name in names:
        np.testing.assert_array_equal(stopped[name], 0.0)
    for grad in grads:
        assert np.all((np.asarray(grad) != 0) == (batch.mask > 0))


def test_metrics_get_no_gradient(policy_terms):
    """Without a coefficient the entropy, and in the reward the KL, are metrics only."""
    batch, live = random_batch()
    objectives = Objectives(kl=Kl(0.1, where="reward"))
    terms = policy_terms(objectives, live, batch)
    assert terms["policy/kl"].weight == 0.0 and float(terms["policy/kl"].total) > 0

    def loss(objectives, live):
        return tiny.objective(policy_terms(objectives, live, batch))

    by_entropy = jax.grad(lambda x: loss(objectives, live._replace(entropy=x)))(live.entropy)
    np.testing.assert_array_equal(by_entropy, 0.0)
    with_kl, without = (
        jax.grad(lambda x, o=o: loss(o, live._replace(log_probs=x)))(live.log_probs)
        for o in (objectives, Objectives())
    )
    np.testing.assert_array_equal(with_kl, without)
    batch = batch.replace(ref_log_probs=None)
    assert "policy/kl" not in policy_terms(Objectives(), live, batch)


def test_policy_scale_silences_every_policy_term(policy_terms):
    batch, live = random_batch()
    silent = CONTEXT.replace(policy_scale=jnp.float32(0.0))

    def loss(log_probs, entropy):
        now = live._replace(log_probs=log_probs, entropy=entropy)
        return tiny.objective(policy_terms(ALL, now, batch, silent))

    for grad in jax.grad(loss, argnums=(0, 1))(live.log_probs, live.entropy):
        np.testing.assert_array_equal(grad, 0.0)
