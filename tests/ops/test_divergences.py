import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from dfpo_jax import ops


@pytest.fixture(autouse=True)
def strict_dtypes():
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("k1", [-1, 14, 29]), ("k2", [0.5, 98, 420.5]), ("k3", [np.e - 2, 13, 28])],
)
def test_kl_known_numbers(variant, kind, expected):
    ref = np.array([[0.0, -15.0, -30.0]])
    result = variant(ops.kl_estimate, static_argnames="kind")(np.full((1, 3), -1.0), ref, kind=kind)
    np.testing.assert_allclose(result, [expected], rtol=1e-5)


def two_policies():
    logits, ref = np.random.default_rng(0).normal(size=(2, 7)).astype(np.float32)
    return logits, ref - np.log(np.exp(ref).sum())


@jax.jit
def exact_kl(logits, ref):
    log_p = jax.nn.log_softmax(logits)
    return jnp.sum(jnp.exp(log_p) * (log_p - ref))


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_kl_estimates_are_unbiased(kind):
    logits, ref = two_policies()
    mean = jax.jit(lambda p: jnp.sum(jnp.exp(p) * ops.kl_estimate(p, ref, kind)))
    expected = exact_kl(logits, ref)
    np.testing.assert_allclose(mean(jax.nn.log_softmax(logits)), expected, rtol=1e-4)
    assert expected > 0.1


@pytest.mark.parametrize("kind", ["k1", "k2"])
def test_expected_gradient_of_the_estimate_as_a_loss(kind):
    logits, ref = two_policies()
    weights = np.exp(logits) / np.exp(logits).sum()  # sampling does not depend on the parameters

    def loss(logits):
        return jnp.sum(weights * ops.kl_estimate(jax.nn.log_softmax(logits), ref, kind))

    exact = jax.jit(jax.grad(exact_kl))(logits, ref)
    expected = exact if kind == "k2" else np.zeros(7)
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(logits), expected, atol=1e-6)
    assert np.abs(exact).max() > 0.1


@pytest.mark.parametrize("kind", ops.KL_KINDS)
def test_reference_is_stopped_and_extremes_are_finite(kind):
    log_probs = np.array([[-1.0, -900.0, -0.1, -2.0]])
    ref = np.array([[-2.0, -0.1, -900.0, -2.0]])

    def total(log_probs, ref):
        return jnp.sum(ops.kl_estimate(log_probs, ref, kind))

    value, grads = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(log_probs, ref)
    assert np.isfinite(value) and np.isfinite(grads[0]).all()
    np.testing.assert_array_equal(grads[1], np.zeros((1, 4)))
    assert np.asarray(grads[0])[0, 0] > 0  # more likely than under the reference: pushed down


def test_k3_is_never_negative():
    ref = np.linspace(-30.0, 30.0, 601, dtype=np.float32)[None]
    fun = jax.jit(ops.kl_estimate)  # k3 is the default
    assert np.min(fun(np.zeros((1, 601)), ref)) >= 0
    values = np.asarray(fun(np.zeros((1, 3)), np.array([[0.0, 20.0, 25.0]])))[0]
    assert values[0] == 0 and values[1] == values[2]


def test_entropy_matches_loop(variant):
    logits = np.random.default_rng(2).normal(0, 5, (3, 4, 9)).astype(np.float32)
    logits[0, 0, 3] = -np.inf
    result = variant(ops.entropy)(logits)
    np.testing.assert_allclose(result, reference.entropy(logits), rtol=1e-4, atol=1e-5)


def test_entropy_is_largest_for_equal_logits_and_zero_for_one_choice():
    logits = np.array([[[2.0, 2.0, 2.0, 2.0], [0.0, -np.inf, -np.inf, -np.inf]]])
    np.testing.assert_allclose(jax.jit(ops.entropy)(logits), [[np.log(4), 0]], rtol=1e-6)


def test_entropy_gradient_with_ruled_out_tokens():
    logits = np.array([[[0.5, -np.inf, 1.5, -1e4]]])
    gradient = jax.jit(jax.grad(lambda x: ops.entropy(x).sum()))
    grad = np.asarray(gradient(logits))[0, 0]
    allowed = np.asarray(gradient(logits[:, :, ::2]))[0, 0]
    np.testing.assert_allclose(grad[::2], allowed, rtol=1e-5)
    np.testing.assert_array_equal(grad[1::2], np.zeros(2))
    assert np.abs(allowed).max() > 0.1


@pytest.mark.parametrize(
    ("observed", "num", "factor"),
    [
        (0.11, 10.0, 1 + 0.1 * 0.1),
        (0.10, 10.0, 1.0),
        (0.09, 10.0, 1 - 0.1 * 0.1),
        (9.0, 10.0, 1 + 0.2 * 0.1),  # error clipped
        (0.0, 10.0, 1 - 0.2 * 0.1),
        (9.0, 1e4, 1.2),  # share clipped
        (0.0, 1e4, 0.8),
        (9.0, 0.0, 1.0),
    ],
)
def test_adaptive_kl_update(variant, observed, num, factor):
    fun = variant(ops.adaptive_kl_update, static_argnames=("target", "horizon"))
    result = fun(0.05, observed, target=0.1, horizon=100.0, num_tokens_or_steps=num)
    np.testing.assert_allclose(result, 0.05 * factor, rtol=1e-5)


def test_adaptive_kl_controller_settles_where_the_divergence_meets_the_target():
    @jax.jit
    def settle(coefficient):
        def step(_, c):
            observed = 0.02 / c  # a policy that drifts less the more it is held
            return ops.adaptive_kl_update(
                c, observed, target=0.1, horizon=10.0, num_tokens_or_steps=5.0
            )

        return jax.lax.fori_loop(0, 200, step, coefficient)

    np.testing.assert_allclose([settle(0.01), settle(3.0)], [0.2, 0.2], rtol=1e-3)


X = np.zeros((1, 2))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ops.kl_estimate(X, X, "kl"), ["kind", "'kl'", "k1", "k2", "k3"]),
        (
            lambda: ops.adaptive_kl_update(1.0, 1.0, target=0.0, horizon=1, num_tokens_or_steps=1),
            ["target", "0.0", "positive"],
        ),
        (
            lambda: ops.adaptive_kl_update(1.0, 1.0, target=1.0, horizon=-2, num_tokens_or_steps=1),
            ["horizon", "-2", "positive"],
        ),
    ],
)
def test_bad_options_are_named(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert all(word in str(error.value) for word in words)


def test_wrong_shapes_are_refused():
    with pytest.raises(AssertionError):
        ops.kl_estimate(X, np.zeros((2,)))
    with pytest.raises(AssertionError):
        ops.adaptive_kl_update(1.0, np.ones(2), target=1.0, horizon=1.0, num_tokens_or_steps=1)
