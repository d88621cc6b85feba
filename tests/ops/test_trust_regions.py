"""DPPO's divergences and its mask, against the definitions in float64."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfpo_jax import ops

PROBABILITIES = (1e-6, 0.01, 0.04, 0.17, 0.35, 0.52, 0.83, 0.985, 0.9999)
PI, MU, A = (
    np.array(x)[None]
    for x in zip(*itertools.product(PROBABILITIES, PROBABILITIES, (-1.3, 0.0, 0.4)), strict=True)
)


@pytest.fixture(autouse=True)
def strict_dtypes():
    with jax.numpy_dtype_promotion("strict"):
        yield


def divergence_of(pi, mu, kind):
    if kind == "tv":
        return abs(mu - pi)
    rest, new_rest = 1 - mu + 1e-8, 1 - pi + 1e-8
    return mu * math.log(mu / pi) + rest * math.log(rest / new_rest)


def log32(x):
    return np.log(x).astype(np.float32)


@pytest.mark.parametrize(("kind", "threshold"), [("tv", 0.155), ("kl", 0.052)])
def test_the_mask_is_the_definition_on_a_grid(kind, threshold, variant):
    fun = variant(ops.divergence_mask, static_argnames=("threshold", "divergence"))
    found = fun(log32(PI), log32(MU), A.astype(np.float32), threshold=threshold, divergence=kind)
    expected = []
    for pi, mu, advantage in zip(PI[0], MU[0], A[0], strict=True):
        ratio, far = pi / mu, divergence_of(pi, mu, kind) > threshold
        out = (advantage > 0 and ratio > 1 and far) or (advantage < 0 and ratio < 1 and far)
        expected.append(0.0 if out else 1.0)
    np.testing.assert_array_equal(found[0], expected)
    assert 0.1 < np.mean(expected) < 0.9


@pytest.mark.parametrize("kind", ops.DIVERGENCES)
def test_the_binary_divergence_is_the_definition(kind, variant):
    fun = variant(ops.binary_divergence, static_argnames="divergence")
    found = fun(log32(PI), log32(MU), divergence=kind)
    expected = [divergence_of(pi, mu, kind) for pi, mu in zip(PI[0], MU[0], strict=True)]
    np.testing.assert_allclose(found[0], expected, rtol=2e-4, atol=1e-6)
    same = ops.binary_divergence(log32(PI), log32(PI), divergence=kind)
    np.testing.assert_array_equal(same, np.zeros_like(PI))


def test_probabilities_of_0_and_1_leave_masks_of_0_and_1():
    log_probs = np.array([[0.0, -np.inf, -1e-8, 1e-7, -200.0]], np.float32)
    behaviour = np.array([[-200.0, -0.1, 0.0, 0.0, -1.0]], np.float32)
    for kind, sign in itertools.product(ops.DIVERGENCES, (-1, 1)):
        advantages = np.full((1, 5), sign, np.float32)
        found = ops.divergence_mask(
            log_probs, behaviour, advantages, threshold=0.1, divergence=kind
        )
        expected = [0, 1, 1, 1, 1] if sign > 0 else [1, 0, 1, 1, 0]
        if kind == "kl":
            expected[0] = 0 if sign > 0 else 1  # log 1e8 of what is left
        np.testing.assert_array_equal(found, [expected])


def laws(seed=0, vocabulary=9, k=3):
    """Two laws over a vocabulary, the sampler's K likeliest tokens, and every token in turn."""
    rng = np.random.default_rng(seed)
    pi, mu = (rng.dirichlet(np.ones(vocabulary) * 0.7) for _ in range(2))
    return pi, mu, np.argsort(-mu)[:k], np.arange(vocabulary)


@pytest.mark.parametrize("kind", ops.DIVERGENCES)
def test_the_divergence_of_the_top_tokens_merges_all_others(kind, variant):
    pi, mu, top, tokens = laws()
    fun = variant(ops.top_k_divergence, static_argnames="divergence")
    rows = [np.broadcast_to(log32(law[top]), (1, len(tokens), len(top))) for law in (pi, mu)]
    included = np.isin(tokens, top)[None]
    found = fun(log32(pi)[None], log32(mu)[None], *rows, included, divergence=kind)
    whole = 0.5 * np.abs(mu - pi).sum() if kind == "tv" else np.sum(mu * np.log(mu / pi))
    binary = ops.binary_divergence(log32(pi)[None], log32(mu)[None], divergence=kind)
    for token in tokens:
        kept = sorted({*top, token})
        masses = [np.append(law[kept], 1 - law[kept].sum()) for law in (mu, pi)]
        if kind == "tv":
            expected = 0.5 * np.abs(masses[0] - masses[1]).sum()
        else:
            expected = np.sum(masses[0] * np.log(masses[0] / masses[1]))
        np.testing.assert_allclose(found[0, token], expected, rtol=1e-4)
        assert float(binary[0, token]) <= expected + 1e-6 <= whole + 2e-6
    assert included.any() and not included.all()


def test_a_top_that_holds_all_the_mass_gives_the_whole_divergence():
    pi, mu, _, tokens = laws(1, vocabulary=4)
    rows = [np.broadcast_to(log32(law), (1, 4, 4)) for law in (pi, mu)]
    inputs = (log32(pi)[None], log32(mu)[None], *rows, np.ones((1, len(tokens)), bool))
    whole = [0.5 * np.abs(mu - pi).sum(), np.sum(mu * np.log(mu / pi))]
    for kind, expected in zip(ops.DIVERGENCES, whole, strict=True):
        found = ops.top_k_divergence(*inputs, divergence=kind)
        np.testing.assert_allclose(found, np.full((1, 4), expected), rtol=1e-4)
        none_left = np.full_like(rows[0], -np.inf)
        found = ops.top_k_divergence(*inputs[:2], none_left, *inputs[3:], divergence=kind)
        assert np.isfinite(found).all()


def test_no_gradient_passes():
    log_probs, behaviour = log32(PI), log32(MU)
    top = np.stack([log_probs, behaviour], axis=-1)

    def total(log_probs, behaviour, advantages):
        mask = ops.divergence_mask(log_probs, behaviour, advantages, threshold=0.1)
        more = ops.top_k_divergence(
            log_probs, behaviour, top + log_probs[..., None], top, jnp.ones(PI.shape, bool)
        )
        return jnp.sum(mask + more + ops.binary_divergence(log_probs, behaviour))

    gradients = jax.grad(total, (0, 1, 2))(log_probs, behaviour, A.astype(np.float32))
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, np.zeros(PI.shape))


X = np.zeros((1, 2), np.float32)
TOP = np.zeros((1, 2, 3), np.float32)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ops.divergence_mask(X, X, X, threshold=-0.1), ["threshold", "-0.1", "at least 0"]),
        (
            lambda: ops.divergence_mask(X, X, X, threshold=0.1, divergence="js"),
            ["divergence", "'js'", "tv, kl"],
        ),
        (lambda: ops.binary_divergence(X, X, divergence="k1"), ["divergence", "'k1'"]),
        (
            lambda: ops.top_k_divergence(X, X, TOP, TOP, X, divergence="k1"),
            ["divergence", "'k1'"],
        ),
    ],
)
def test_bad_options_are_named(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    "call",
    [
        lambda: ops.divergence_mask(X, X, np.zeros((1, 1)), threshold=0.1),
        lambda: ops.binary_divergence(X, np.zeros((2,))),
        lambda: ops.top_k_divergence(X, X, TOP, TOP[..., :2], X),
        lambda: ops.top_k_divergence(X, X, X, X, X),
        lambda: ops.trust_region_mask(X, X, X, np.zeros((1,)), threshold=0.1),
    ],
)
def test_wrong_shapes_are_refused(call):
    with pytest.raises(AssertionError):
        call()
