import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dfpo_jax.models.attention as attention_module
from dfpo_jax.models.attention import attention

B, TQ, TK, H = 3, 4, 5, 8


@pytest.fixture(scope="module", autouse=True)
def fast_compile():
    """Each program runs a few times only: compile without most optimizations."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def inputs(heads, kv_heads, seed=0):
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(B, TQ, heads, H)).astype(np.float32)
    k = rng.normal(size=(B, TK, kv_heads, H)).astype(np.float32)
    v = rng.normal(size=(B, TK, kv_heads, H)).astype(np.float32)
    mask = rng.random((B, TQ, TK)) < 0.6
    mask[0, 1] = False  # one query without a key
    mask[2] = False  # a whole sequence without one
    mask[1, 0] = True
    return q, k, v, mask


def reference(q, k, v, mask):
    """Loops over sequences, queries and heads, in double precision."""
    out = np.zeros(q.shape)
    group = q.shape[2] // k.shape[2]
    for b in range(q.shape[0]):
        for i in range(q.shape[1]):
            for n in range(q.shape[2]):
                keys = np.flatnonzero(mask[b, i])
                if keys.size == 0:
                    continue
                scores = k[b, keys, n // group].astype(np.float64) @ q[b, i, n] / np.sqrt(H)
                weights = np.exp(scores - scores.max())
                out[b, i, n] = weights / weights.sum() @ v[b, keys, n // group]
    return out


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("implementation", ["auto", "xla"])
def test_equals_the_loops(variant, heads, kv_heads, implementation):
    arrays = inputs(heads, kv_heads)
    out = variant(attention, static_argnames="implementation")(
        *arrays, implementation=implementation
    )
    np.testing.assert_allclose(out, reference(*arrays), atol=2e-6)


def test_queries_without_keys_give_zero_and_no_gradient(variant):
    q, k, v, mask = inputs(4, 2)
    out = variant(attention)(q, k, v, mask)
    assert np.all(np.asarray(out[0, 1]) == 0) and np.all(np.asarray(out[2]) == 0)

    def loss(q, k, v):
        return jnp.sum(jnp.square(attention(q, k, v, mask) + 1.0))

    grads = variant(jax.grad(loss, argnums=(0, 1, 2)))(q, k, v)
    assert all(np.all(np.isfinite(g)) for g in grads)
    assert np.all(np.asarray(grads[0][0, 1]) == 0)
    assert all(np.all(np.asarray(g[2]) == 0) for g in grads)
    assert all(np.abs(np.asarray(g[1])).max() > 0 for g in grads)


def test_masked_keys_change_nothing_and_get_no_gradient():
    q, k, v, mask = inputs(4, 2)
    mask[:, :, 3] = False
    out = attention(q, k, v, mask)
    k_other, v_other = k.copy(), v.copy()
    k_other[:, 3], v_other[:, 3] = 1e4, -1e4
    np.testing.assert_array_equal(out, attention(q, k_other, v_other, mask))
    grads = jax.grad(lambda k, v: jnp.sum(attention(q, k, v, mask) ** 2), argnums=(0, 1))(k, v)
    assert all(np.all(np.asarray(g[:, 3]) == 0) for g in grads)


def test_gradient_equals_finite_differences():
    arrays = inputs(2, 1, seed=3)
    q, k, v, mask = arrays
    direction = np.random.default_rng(1).normal(size=k.shape)
    weight = np.random.default_rng(2).normal(size=q.shape)
    grad = jax.grad(lambda k: jnp.sum(attention(q, k, v, mask) * weight.astype(np.float32)))(k)
    step = 1e-5
    ends = [(reference(q, k + s * step * direction, v, mask) * weight).sum() for s in (1, -1)]
    np.testing.assert_allclose(
        np.sum(grad * direction), (ends[0] - ends[1]) / (2 * step), rtol=1e-3
    )


def test_low_precision_inputs_keep_their_type_and_a_float32_softmax():
    q, k, v, mask = inputs(4, 2)
    low = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)]
    out = attention(*low, mask)
    assert out.dtype == jnp.bfloat16
    exact = reference(*(np.asarray(x, np.float32) for x in low), mask)
    np.testing.assert_allclose(np.asarray(out, np.float32), exact, atol=0.02)


def test_large_scores_stay_finite():
    q, k, v, mask = inputs(4, 2)
    out = attention(q * 1e4, k * 1e4, v, mask)
    assert np.all(np.isfinite(out))


@pytest.mark.parametrize(
    ("backend", "dtype", "width", "expected"),
    [
        ("gpu", jnp.bfloat16, 64, "cudnn"),
        ("gpu", jnp.float16, 128, "cudnn"),
        ("gpu", jnp.float32, 64, "xla"),
        ("gpu", jnp.bfloat16, 60, "xla"),
        ("gpu", jnp.bfloat16, 256, "xla"),
        ("tpu", jnp.bfloat16, 64, "xla"),
        ("cpu", jnp.bfloat16, 64, "xla"),
    ],
)
def test_auto_chooses_from_platform_type_and_width(monkeypatch, backend, dtype, width, expected):
    called = []
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(attention_module, "_cudnn", lambda *args: called.append("cudnn"))
    monkeypatch.setattr(attention_module, "_xla", lambda *args: called.append("xla"))
    x = jnp.zeros((1, 2, 2, width), dtype)
    attention(x, x, x, jnp.ones((1, 2, 2), bool))
    assert called == [expected]


def test_what_cudnn_does_not_take_is_said_once(monkeypatch, caplog):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    attention_module._refuse.cache_clear()
    for length in (3, 3, 5):
        x = jnp.zeros((1, length, 2, 64), jnp.bfloat16)
        mask = jnp.ones((1, length, length), bool)
        np.testing.assert_array_equal(attention(x, x, x, mask), x)
    assert caplog.messages == [
        f"attention by XLA, not cuDNN: {n} queries and {n} keys; it takes even lengths"
        for n in (3, 5)
    ]


def test_cudnn_path_zeroes_queries_without_keys(monkeypatch):
    q, k, v, mask = inputs(4, 2)
    original = jax.nn.dot_product_attention

    def portable(q, k, v, mask, implementation):
        assert implementation == "cudnn"
        return original(q, k, v, mask=mask, implementation="xla")

    monkeypatch.setattr(jax.nn, "dot_product_attention", portable)
    out = attention(q, k, v, mask, "cudnn")
    np.testing.assert_allclose(out, reference(q, k, v, mask), atol=2e-6)


def test_bad_arguments():
    q, k, v, mask = inputs(4, 2)
    with pytest.raises(ValueError, match="implementation is 'flash'.*auto, xla, cudnn"):
        attention(q, k, v, mask, "flash")
    with pytest.raises(ValueError, match="q has 3 heads and k has 2"):
        attention(q[:, :, :3], k, v, mask)
    with pytest.raises(AssertionError):
        attention(q, k, v, mask.astype(np.float32))
    with pytest.raises(AssertionError):
        attention(q, k, v, mask[:, :, :3])


@pytest.mark.parametrize("length", [100, 129, 300, 1100])
@pytest.mark.parametrize("side", ["left", "right"])
def test_pieces_of_the_queries_change_nothing(length, side):
    rng = np.random.default_rng(0)
    q, k, v = (
        jnp.asarray(rng.normal(size=(2, length, heads, 4)), jnp.float32) for heads in (4, 2, 2)
    )
    valid = np.ones((2, length), bool)
    valid[0, : length // 3] = False
    valid = jnp.asarray(valid if side == "left" else valid[:, ::-1])
    mask = jnp.tril(jnp.ones((length, length), bool))[None] & valid[:, None]

    def loss(causal_valid):
        def run(q, k, v):
            out = attention(q, k, v, mask, "xla", causal_valid)
            return jnp.sum(jnp.sin(out)), out

        return jax.jit(jax.value_and_grad(run, argnums=(0, 1, 2), has_aux=True))(q, k, v)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        loss(valid),
        loss(None),
    )
