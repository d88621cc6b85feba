import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dfpo_jax.models.attention as attention_module
from dfpo_jax.models.attention import attention
from dfpo_jax.sharding import create_mesh, mesh_context

B, T, H = 3, 5, 8


def inputs(heads, kv_heads, seed=0, length=T):
    rng = np.random.default_rng(seed)
    return tuple(
        rng.normal(size=(B, length, n, H)).astype(np.float32) for n in (heads, kv_heads, kv_heads)
    )


def reference(q, k, v):
    """Loops over sequences, queries and heads, in double precision."""
    out = np.zeros(q.shape)
    group = q.shape[2] // k.shape[2]
    for b in range(q.shape[0]):
        for i in range(q.shape[1]):
            for n in range(q.shape[2]):
                scores = k[b, : i + 1, n // group].astype(np.float64) @ q[b, i, n] / np.sqrt(H)
                weights = np.exp(scores - scores.max())
                out[b, i, n] = weights / weights.sum() @ v[b, : i + 1, n // group]
    return out


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("implementation", ["auto", "xla"])
def test_equals_the_loops(variant, heads, kv_heads, implementation):
    arrays = inputs(heads, kv_heads)
    out = variant(attention, static_argnames="implementation")(
        *arrays, implementation=implementation
    )
    np.testing.assert_allclose(out, reference(*arrays), atol=2e-6)


@pytest.mark.parametrize("length", [100, 128, 129, 300, 1100])
def test_pieces_of_the_queries_equal_the_loops(length):
    arrays = [x[:1] for x in inputs(2, 1, length=length)]
    np.testing.assert_allclose(jax.jit(attention)(*arrays), reference(*arrays), atol=3e-6)


def test_later_keys_change_nothing_and_get_no_gradient():
    q, k, v = inputs(4, 2, length=200)
    out = attention(q, k, v)
    k_other, v_other = k.copy(), v.copy()
    k_other[:, 150:], v_other[:, 150:] = 1e4, -1e4
    np.testing.assert_array_equal(out[:, :150], attention(q, k_other, v_other)[:, :150])
    grads = jax.grad(lambda k, v: jnp.sum(attention(q, k, v)[:, :150] ** 2), argnums=(0, 1))(k, v)
    assert all(np.all(np.asarray(g[:, 150:]) == 0) for g in grads)
    assert all(np.abs(np.asarray(g[:, :150])).max() > 0 for g in grads)


def test_gradient_equals_finite_differences():
    q, k, v = inputs(2, 1, seed=3)
    direction = np.random.default_rng(1).normal(size=k.shape)
    weight = np.random.default_rng(2).normal(size=q.shape)
    grad = jax.grad(lambda k: jnp.sum(attention(q, k, v) * weight.astype(np.float32)))(k)
    step = 1e-5
    ends = [(reference(q, k + s * step * direction, v) * weight).sum() for s in (1, -1)]
    np.testing.assert_allclose(
        np.sum(grad * direction), (ends[0] - ends[1]) / (2 * step), rtol=1e-3
    )


def test_low_precision_inputs_keep_their_type_and_a_float32_softmax():
    low = [jnp.asarray(x, jnp.bfloat16) for x in inputs(4, 2)]
    out = attention(*low)
    assert out.dtype == jnp.bfloat16
    exact = reference(*(np.asarray(x, np.float32) for x in low))
    np.testing.assert_allclose(np.asarray(out, np.float32), exact, atol=0.02)


def test_large_scores_stay_finite():
    q, k, v = inputs(4, 2)
    assert np.all(np.isfinite(attention(q * 1e4, k * 1e4, v)))


@pytest.mark.parametrize(
    ("backend", "dtype", "width", "expected"),
    [
        ("gpu", jnp.bfloat16, 64, "cudnn"),
        ("gpu", jnp.float16, 128, "cudnn"),
        ("gpu", jnp.float32, 64, "xla"),
        ("gpu", jnp.bfloat16, 60, "xla"),
        ("gpu", jnp.bfloat16, 256, "xla"),
        ("tpu", jnp.bfloat16, 64, "xla"),
        ("tpu", jnp.bfloat16, 128, "splash"),
        ("cpu", jnp.bfloat16, 128, "xla"),
    ],
)
def test_auto_chooses_from_platform_type_and_width(monkeypatch, backend, dtype, width, expected):
    called = []
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(attention_module, "_cudnn", lambda *args: called.append("cudnn"))
    monkeypatch.setattr(attention_module, "_xla", lambda *args: called.append("xla"))
    monkeypatch.setattr(attention_module, "_splash", lambda *args: called.append("splash"))
    x = jnp.zeros((1, 130, 2, width), dtype)
    attention(x, x, x)
    assert called == [expected]


def test_what_cudnn_does_not_take_is_said_once(monkeypatch, caplog):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    attention_module._refuse.cache_clear()
    x = jnp.zeros((3, 4, 2, 60), jnp.bfloat16)
    for implementation in ("auto", "cudnn"):
        np.testing.assert_array_equal(attention(x, x, x, implementation), x)
    x = jnp.zeros((3, 4, 2, 64), jnp.bfloat16)
    with mesh_context(create_mesh(2, 1, 2)):
        np.testing.assert_array_equal(attention(x, x, x), x)
        attention(*(x[:, :1],) * 3)  # no word of a single token
    assert caplog.messages == [
        "attention by XLA, not cuDNN: head width 60; it takes multiples of 8 up to 128",
        "attention by XLA, not cuDNN: 3 rows and 2 key heads; the mesh must divide both",
    ]


def segmented(q, k, v, ids):
    """The loops over each run of equal ids alone."""
    out = np.zeros(q.shape)
    for b, row in enumerate(np.asarray(ids)):
        for segment in np.unique(row):
            (at,) = np.nonzero(row == segment)
            out[b, at] = reference(*(x[b : b + 1, at] for x in (q, k, v)))[0]
    return out


def random_segments(length, seed=0):
    return np.sort(np.random.default_rng(seed).integers(0, 3, (B, length)), axis=1)


@pytest.mark.parametrize("length", [5, 150])  # of XLA's, one piece of queries and two
def test_segments_do_not_see_one_another(length):
    arrays, ids = inputs(4, 2, length=length), random_segments(length)
    found = jax.jit(attention, static_argnums=3)(*arrays, "xla", ids)
    np.testing.assert_allclose(found, segmented(*arrays, ids), atol=2e-6)


@pytest.mark.parametrize("length", [4, 5])
@pytest.mark.parametrize("several", [False, True])
def test_cudnn_is_asked_for_the_same_in_even_lengths(monkeypatch, length, several):
    q, k, v = inputs(4, 2, length=length)
    original = jax.nn.dot_product_attention

    def portable(q, k, v, *, mask, is_causal, implementation):
        assert implementation == "cudnn" and q.shape[1] % 2 == 0
        return original(q, k, v, mask=mask, is_causal=is_causal, implementation="xla")

    monkeypatch.setattr(jax.nn, "dot_product_attention", portable)
    ids = jnp.asarray(random_segments(length)) if several else None
    expected = segmented(q, k, v, ids) if several else reference(q, k, v)
    np.testing.assert_allclose(attention_module._cudnn(q, k, v, ids), expected, atol=2e-6)


def test_bad_arguments():
    q, k, v = inputs(4, 2)
    with pytest.raises(ValueError, match="implementation is 'flash'.*auto, xla, cudnn"):
        attention(q, k, v, "flash")
    with pytest.raises(ValueError, match="q has 3 heads and k has 2"):
        attention(q[:, :, :3], k, v)
    with pytest.raises(AssertionError):
        attention(q, k[:, :3], v)
    with pytest.raises(AssertionError):
        attention(q[0], k, v)
