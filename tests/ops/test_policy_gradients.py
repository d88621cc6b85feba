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


def data(seed, shape=(6, 8)):
    rng = np.random.default_rng(seed)
    old = rng.normal(-2.0, 1.0, shape).astype(np.float32)
    return (
        old + rng.normal(0, 0.4, shape).astype(np.float32),
        old,
        rng.normal(size=shape).astype(np.float32),
    )


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_token_log_probs_match_loop(variant, temperature):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 4, (3, 4, 11)).astype(np.float32)
    tokens = rng.integers(0, 11, (3, 4))
    fun = variant(ops.token_log_probs, static_argnames="temperature")
    result = fun(logits, tokens, temperature=temperature)
    expected = reference.token_log_probs(logits, tokens, temperature)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


def test_token_log_probs_of_all_tokens_sum_to_one_even_from_huge_bfloat16_logits():
    logits = jnp.array([[[1000.0, 999.0, -1000.0, 1000.0]]], jnp.bfloat16)
    log_probs = jax.jit(ops.token_log_probs)
    every = [log_probs(logits, np.full((1, 1), v)) for v in range(4)]
    assert every[0].dtype == jnp.float32
    np.testing.assert_allclose(sum(np.exp(x) for x in every), [[1.0]], rtol=1e-6)


def test_token_log_probs_gradient_is_finite_beside_ruled_out_tokens():
    logits = np.array([[[0.3, -np.inf, 1.0]]])
    tokens = np.array([[2]])
    grad = jax.jit(jax.grad(lambda x: ops.token_log_probs(x, tokens).sum()))(logits)
    p = np.exp([0.3, -np.inf, 1.0]) / np.exp([0.3, 1.0]).sum()
    np.testing.assert_allclose(grad[0, 0], [-p[0], 0, 1 - p[2]], rtol=1e-5)


def test_token_log_probs_of_an_unknown_token_is_not_a_number():
    assert np.isnan(jax.jit(ops.token_log_probs)(np.zeros((1, 1, 4)), np.array([[4]])))


@pytest.mark.parametrize("clips", [(0.2, 0.2, None), (0.2, 0.28, None), (0.1, 0.3, 1.5)])
def test_ppo_clip_matches_loop(variant, clips):
    clip_low, clip_high, dual_clip = clips
    fun = variant(ops.ppo_clip, static_argnames=("clip_low", "clip_high", "dual_clip"))
    result = fun(*data(1), clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)
    np.testing.assert_allclose(result, reference.ppo_clip(*data(1), *clips), rtol=1e-4, atol=1e-6)


def test_ppo_clip_matches_rlax():
    rlax = pytest.importorskip("rlax")
    log_probs, old, advantages = (x.ravel() for x in data(2))

    def ours(x):
        return jnp.mean(ops.ppo_clip(x, old, advantages))

    def theirs(x):
        return rlax.clipped_surrogate_pg_loss(jnp.exp(x - old), jnp.asarray(advantages), 0.2)

    result, expected = (jax.jit(jax.value_and_grad(f))(log_probs) for f in (ours, theirs))
    np.testing.assert_allclose(result[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(result[1], expected[1], rtol=1e-4, atol=1e-6)


def test_ppo_clip_known_numbers():
    log_probs = np.log([[0.5, 1.0, 1.5]]) - 1
    loss = jax.jit(ops.ppo_clip)(log_probs, np.full((1, 3), -1.0), np.array([[1.0, -1.0, 2.0]]))
    np.testing.assert_allclose(loss, [[-0.5, 1.0, -2.4]], rtol=1e-6)


def test_dual_clip_bounds_the_loss_of_bad_tokens_only():
    log_probs, old = np.full((1, 2), np.log(10.0)), np.zeros((1, 2))
    advantages = np.array([[-1.0, 1.0]])
    np.testing.assert_allclose(ops.ppo_clip(log_probs, old, advantages), [[10, -1.2]], rtol=1e-5)
    loss = ops.ppo_clip(log_probs, old, advantages, dual_clip=3.0)
    np.testing.assert_allclose(loss, [[3, -1.2]], rtol=1e-5)


def test_gradient_reaches_the_policy_only_and_only_where_not_clipped():
    log_probs, old, advantages = data(3)

    def total(log_probs, old, advantages):
        return jnp.sum(ops.ppo_clip(log_probs, old, advantages, clip_low=0.2, clip_high=0.3))

    grads = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(log_probs, old, advantages)
    np.testing.assert_array_equal(grads[1], np.zeros((6, 8)))
    np.testing.assert_array_equal(grads[2], np.zeros((6, 8)))
    clipped = np.asarray(ops.clip_fraction(log_probs, old, advantages, clip_low=0.2, clip_high=0.3))
    expected = -np.exp(log_probs - old) * advantages * (1 - clipped)
    np.testing.assert_allclose(grads[0], expected, rtol=1e-4, atol=1e-6)
    assert 0.05 < np.mean(clipped) < 0.5


def test_clip_fraction_matches_the_definition(variant):
    ratio = np.array([[0.7, 0.7, 0.85, 1.25, 1.4, 1.4, 1.4]], np.float32)
    advantages = np.array([[1.0, -1.0, -1.0, 1.0, 1.0, -1.0, 0.0]], np.float32)
    fun = variant(ops.clip_fraction, static_argnames=("clip_low", "clip_high"))
    result = fun(np.log(ratio), np.zeros_like(ratio), advantages, clip_low=0.2, clip_high=0.3)
    np.testing.assert_array_equal(result, [[0, 1, 0, 0, 1, 0, 0]])
    gradient = jax.jit(jax.grad(lambda x: ops.clip_fraction(x, 0 * x, advantages).sum()))
    np.testing.assert_array_equal(gradient(np.log(ratio)), np.zeros((1, 7)))


def test_extreme_log_ratios_stay_finite():
    log_probs = np.array([[500.0, -500.0, 500.0, -500.0, np.inf, -np.inf]])
    advantages = np.array([[1.0, 1.0, -1.0, -1.0, -1.0, -1.0]])
    old = np.zeros((1, 6))
    loss, grad = jax.jit(jax.value_and_grad(lambda x: jnp.sum(ops.ppo_clip(x, old, advantages))))(
        log_probs
    )
    assert np.isfinite(loss)
    np.testing.assert_array_equal(grad, np.zeros((1, 6)))
    weights = np.asarray(ops.truncated_importance_weights(log_probs, old))
    assert ((weights > 0) & (weights <= 2.0)).all()


def test_importance_weights_match_loop_and_carry_no_gradient(variant):
    log_probs, behaviour, _ = data(4)
    fun = variant(ops.truncated_importance_weights, static_argnames="cap")
    result = fun(log_probs, behaviour, cap=1.5)
    expected = np.minimum(np.exp(log_probs.astype(np.float64) - behaviour), 1.5)
    np.testing.assert_allclose(result, expected, rtol=1e-5)
    assert np.max(result) == 1.5 and np.min(result) < 1
    gradient = jax.grad(lambda x, y: ops.truncated_importance_weights(x, y).sum(), argnums=(0, 1))
    for grad in jax.jit(gradient)(log_probs, behaviour):
        np.testing.assert_array_equal(grad, np.zeros((6, 8)))


def test_cispo_clips_the_weight_and_not_the_gradient(variant):
    log_probs, old, advantages = data(5)
    fun = variant(ops.cispo, static_argnames=("clip_low", "clip_high"))
    result = fun(log_probs, old, advantages, clip_low=0.3, clip_high=0.4)
    ratio = np.exp(log_probs.astype(float) - old)
    weights = np.clip(ratio, 0.7, 1.4)
    np.testing.assert_allclose(result, -weights * advantages * log_probs, rtol=1e-4, atol=1e-6)

    def total(*inputs):
        return jnp.sum(ops.cispo(*inputs, clip_low=0.3, clip_high=0.4))

    gradients = jax.grad(total, argnums=(0, 1, 2))(log_probs, old, advantages)
    np.testing.assert_allclose(gradients[0], -weights * advantages, rtol=1e-4)
    np.testing.assert_array_equal(gradients[1], np.zeros((6, 8)))
    np.testing.assert_array_equal(gradients[2], np.zeros((6, 8)))
    assert ((ratio < 0.7) | (ratio > 1.4)).any() and (np.asarray(gradients[0]) != 0).all()
    # Without a lower bound a small ratio is itself.
    np.testing.assert_allclose(ops.cispo(old - 3, old, 1 + 0 * old), -np.exp(-3) * (old - 3), 1e-5)


def test_the_expert_guides_by_its_distance(variant):
    log_probs, expert, advantages = data(6)
    correct = np.array([True, False, True, False, False, True])
    fun = variant(ops.expert_exploration, static_argnames="slope")
    result = fun(log_probs, expert, correct, advantages, slope=0.3)
    expected = np.zeros((6, 8))
    for b, i in np.ndindex(6, 8):
        x = float(log_probs[b, i] - expert[b, i]) * (-1 if correct[b] else 1)
        expected[b, i] = abs(advantages[b, i]) * (x if x > 0 else 0.3 * x)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-6)

    def total(*inputs):
        return jnp.sum(ops.expert_exploration(inputs[0], inputs[1], correct, inputs[2]))

    gradients = jax.grad(total, argnums=(0, 1, 2))(log_probs, expert, advantages)
    # Full where it must still move, half where it is already past the expert.
    sign = np.where(correct, -1, 1)[:, None]
    share = np.where(sign * (log_probs - expert) > 0, 1.0, 0.5)
    np.testing.assert_allclose(gradients[0], sign * share * np.abs(advantages), rtol=1e-5)
    np.testing.assert_array_equal(gradients[1], np.zeros((6, 8)))
    np.testing.assert_array_equal(gradients[2], np.zeros((6, 8)))


X = np.zeros((1, 2))
CORRECT = np.ones(1, bool)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ops.ppo_clip(X, X, X, clip_low=1.2), ["clip_low", "1.2", "[0, 1]"]),
        (lambda: ops.ppo_clip(X, X, X, clip_high=-0.1), ["clip_high", "-0.1", "at least 0"]),
        (lambda: ops.ppo_clip(X, X, X, dual_clip=0.5), ["dual_clip", "0.5", "above 1"]),
        (lambda: ops.clip_fraction(X, X, X, clip_low=-1.0), ["clip_low", "-1.0", "[0, 1]"]),
        (lambda: ops.cispo(X, X, X, clip_low=1.2), ["clip_low", "1.2", "[0, 1]"]),
        (lambda: ops.cispo(X, X, X, clip_high=-0.1), ["clip_high", "-0.1", "at least 0"]),
        (lambda: ops.expert_exploration(X, X, CORRECT, X, slope=0.0), ["slope", "positive"]),
        (lambda: ops.expert_exploration(X, X, CORRECT, X, slope=1.5), ["slope", "1.5", "most 1"]),
        (lambda: ops.truncated_importance_weights(X, X, cap=0.0), ["cap", "0.0", "positive"]),
        (
            lambda: ops.token_log_probs(
                np.zeros((1, 2, 3)), np.zeros((1, 2), np.int32), temperature=0
            ),
            ["temperature", "0", "positive"],
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
        lambda: ops.ppo_clip(X, X, np.zeros((1, 1))),
        lambda: ops.clip_fraction(X, np.zeros((2,)), X),
        lambda: ops.cispo(X, X, np.zeros((1, 1))),
        lambda: ops.expert_exploration(X, X, np.ones(2, bool), X),
        lambda: ops.expert_exploration(X, np.zeros((2,)), CORRECT, X),
        lambda: ops.truncated_importance_weights(X, np.zeros((2, 1))),
        lambda: ops.token_log_probs(np.zeros((1, 3, 4)), np.zeros((1, 2), np.int32)),
        lambda: ops.token_log_probs(np.zeros((1, 2, 4)), np.zeros((1, 2))),
    ],
)
def test_wrong_shapes_and_types_are_refused(call):
    with pytest.raises(AssertionError):
        call()
