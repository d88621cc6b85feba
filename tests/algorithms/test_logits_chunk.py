"""Log-probabilities and entropies in chunks of time steps: the same numbers and gradients."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from critic_cases import LIGHT

from dfpo_jax import ops
from dfpo_jax.algorithms import AlgorithmConfig, LogProbs, compose
from dfpo_jax.algorithms.trunk import token_statistics
from dfpo_jax.critics import Critics
from dfpo_jax.models import vocabulary
from dfpo_jax.models.transformer import Transformer
from dfpo_jax.objectives import Entropy, Kl, Objectives
from dfpo_jax.sharding import create_mesh, mesh_context
from dfpo_jax.training.gradients import accumulate_gradients
from dfpo_jax.training.update import init_policy

BATCH, LENGTH, TEMPERATURE = 3, 7, 0.7


def statistics_and_gradients(config, chunk):
    model, rng = Transformer(config), np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, config.vocab_size, (BATCH, LENGTH)))
    states = jnp.asarray(rng.normal(size=(BATCH, LENGTH + 1, config.d_model)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(2, BATCH, LENGTH)), jnp.float32)
    params = tiny.randomised(tiny_params(model))

    def loss(params, states):
        out = token_statistics(model, params, states, tokens, TEMPERATURE, chunk)
        return jnp.sum(jnp.stack(out) * weights), out

    grads, out = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, states)
    return out, grads


@functools.cache
def tiny_params(model):
    return nn.unbox(init_policy(model, jax.random.key(0)))


@pytest.mark.parametrize("config", [tiny.DECODER, tiny.UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("chunk", [1, 3])
def test_chunks_change_nothing(config, chunk):
    whole, whole_grads = statistics_and_gradients(config, 0)
    out, grads = statistics_and_gradients(config, chunk)
    for x, y in zip(out, whole, strict=True):
        assert x.shape == (BATCH, LENGTH)
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
    name = "head" if not config.tie_embeddings else "embedding"
    assert float(jnp.abs(whole_grads[0][name]).max()) > 0.1
    for x, y in zip(jax.tree.leaves(grads), jax.tree.leaves(whole_grads), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2)])
@pytest.mark.parametrize("chunk", [0, 2])
def test_the_gradient_equals_that_of_the_plain_functions(sizes, chunk):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(4, LENGTH, 6)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(12, 6)), jnp.float32)
    tokens = jnp.asarray(rng.integers(0, 12, (4, LENGTH)))
    weights = jnp.asarray(rng.normal(size=(2, 4, LENGTH)), jnp.float32)

    def plain(hidden, kernel):
        logits = jnp.einsum("btd,vd->btv", hidden, kernel) / TEMPERATURE
        return ops.token_log_probs(logits, tokens), ops.entropy(logits)

    def ours(hidden, kernel):
        return vocabulary.token_statistics(hidden, kernel, tokens, TEMPERATURE, chunk)

    def gradients(statistics):
        def loss(hidden, kernel):
            return jnp.sum(jnp.stack(statistics(hidden, kernel)) * weights)

        return jax.jit(jax.grad(loss, (0, 1)))(hidden, kernel)

    expected = gradients(plain)
    with mesh_context(create_mesh(*sizes)):
        found = gradients(ours)
    for x, y in zip(found, expected, strict=True):
        assert np.abs(y).max() > 0.1
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 3000.0])
@pytest.mark.parametrize("chunk", [0, 2])
def test_equals_double_precision(scale, chunk):
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(BATCH, LENGTH, 6)).astype(np.float32)
    kernel = rng.normal(size=(11, 6)).astype(np.float32) * np.float32(scale)
    tokens = rng.integers(0, 11, (BATCH, LENGTH))
    found = vocabulary.token_statistics(hidden, jnp.asarray(kernel), tokens, TEMPERATURE, chunk)
    logits = (hidden @ kernel.T).astype(np.float64) / TEMPERATURE
    logits -= logits.max(-1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    entropy = -np.sum(np.exp(log_p) * log_p, -1)
    chosen = np.take_along_axis(log_p, tokens[..., None], -1)[..., 0]
    rounding = 1e-7 * np.abs(hidden @ kernel.T).max() / TEMPERATURE
    np.testing.assert_allclose(found[0], chosen, rtol=1e-5, atol=1e-6 + rounding)
    np.testing.assert_allclose(found[1], entropy, rtol=1e-5, atol=1e-6 + rounding)


@pytest.mark.parametrize("chunk", [0, 30])
def test_products_of_short_floats_are_summed_in_long_ones(chunk):
    """Against double precision from the rounded inputs; a bfloat16 is off by up to 2^-9."""
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(4, 100, 16)), jnp.bfloat16)
    kernel = jnp.asarray(rng.normal(size=(32, 16)), jnp.float32)
    tokens = rng.integers(0, 32, (4, 100))
    weights = jnp.asarray(rng.normal(size=(2, 4, 100)), jnp.float32)

    def loss(hidden, kernel):
        out = vocabulary.token_statistics(hidden, kernel, tokens, TEMPERATURE, chunk)
        return jnp.sum(jnp.stack(out) * weights), out

    # Otherwise the compiler may leave out a rounding that the program asks for.
    exact = {"xla_allow_excess_precision": False}
    gradients = jax.jit(jax.grad(loss, (0, 1), has_aux=True), compiler_options=exact)
    (of_hidden, of_kernel), out = gradients(hidden, kernel)
    assert {x.dtype for x in out} == {jnp.dtype("float32")}
    assert (of_hidden.dtype, of_kernel.dtype) == (jnp.bfloat16, jnp.float32)
    rows, words = (np.asarray(x.astype(jnp.bfloat16), float) for x in (hidden, kernel))
    logits = rows @ words.T / TEMPERATURE
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    p, one_hot = np.exp(log_p), np.eye(32)[tokens]
    entropy = -(p * log_p).sum(-1)
    np.testing.assert_allclose(out[0], (log_p * one_hot).sum(-1), atol=2e-5)
    np.testing.assert_allclose(out[1], entropy, atol=2e-5)
    # The derivative by the logits is rounded once, before the sum over 400 rows.
    g, h = np.asarray(weights, float)[..., None]
    change = (g * (one_hot - p) - h * p * (log_p + entropy[..., None])) / TEMPERATURE
    change = np.asarray(jnp.asarray(change, jnp.bfloat16), float)
    expected = np.einsum("btv,btd->vd", change, rows)
    error = np.linalg.norm(of_kernel - expected) / np.linalg.norm(expected)
    assert error < 2**-9 / 20


def test_no_array_holds_all_logits():
    """In the gradient, neither [batch, time, vocab] nor a reshaping of it exists."""
    model = Transformer(dataclasses.replace(tiny.UNTIED, vocab_size=97))
    params = jax.tree.map(np.asarray, tiny_params(model))
    tokens = jnp.zeros((BATCH, 32), jnp.int32)
    states = jnp.ones((BATCH, 33, model.config.d_model))

    def largest(chunk):
        def loss(params, states):
            out = token_statistics(model, params, states, tokens, TEMPERATURE, chunk)
            return sum(map(jnp.sum, out))

        jaxpr = jax.make_jaxpr(jax.grad(loss, (0, 1)))(params, states)
        sizes = [v.aval.size for eqn in equations(jaxpr.jaxpr) for v in eqn.outvars]
        return max(sizes)

    assert largest(0) == BATCH * 32 * 97
    assert largest(2) < BATCH * 32 * 97 / 4


@pytest.mark.parametrize(("sizes", "expected"), [((1, 1, 1), 2), ((2, 1, 2), 8), ((2, 2, 2), 16)])
def test_as_many_steps_at_once_as_logits_fit_a_device(sizes, expected, monkeypatch):
    """Here two steps of a whole batch: on several devices so many times more."""
    hidden, kernel = jnp.ones((4, 32, 2)), jnp.ones((96, 2))
    tokens = jnp.zeros((4, 32), jnp.int32)
    monkeypatch.setattr(vocabulary, "_MOST_LOGITS", 2 * 4 * 96)

    def loss(hidden, kernel):
        return sum(map(jnp.sum, vocabulary.token_statistics(hidden, kernel, tokens, TEMPERATURE)))

    with mesh_context(create_mesh(*sizes)):
        jaxpr = jax.make_jaxpr(jax.grad(loss, (0, 1)))(hidden, kernel)
    largest = max(v.aval.size for eqn in equations(jaxpr.jaxpr) for v in eqn.outvars)
    assert largest == 4 * expected * 96


def equations(jaxpr):
    """All equations, those of inner programs included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


@pytest.mark.slow
@pytest.mark.parametrize(("chunk", "microbatches"), [(2, 4)])
def test_chunks_and_microbatches_leave_an_update_as_it_is(chunk, microbatches):
    objective, critic = Objectives(entropy=Entropy(0.01), kl=Kl(0.1)), Critics(flow=LIGHT)
    gradients = {}
    for number, pieces in ((0, 1), (chunk, microbatches)):
        config = AlgorithmConfig(critic, objective=objective, log_probs=LogProbs(chunk=number))
        algorithm = compose(Transformer(tiny.DECODER), config, 1.0)
        params = tiny.randomised(tiny_params(Transformer(tiny.DECODER)), scale=0.05)
        state = tiny.make_state(algorithm, params)
        batch, context = jax.jit(algorithm.prepare)(state, tiny.ragged_rollout(), jax.random.key(1))
        gradients[number, pieces] = jax.jit(
            functools.partial(
                accumulate_gradients, algorithm, microbatches=pieces, networks=algorithm.networks
            )
        )(state.params, batch, context, jax.random.key(2))
    whole, split = gradients.values()
    for x, y in zip(jax.tree.leaves(split), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=2e-5)
