"""The TPU back end of attention, its kernel interpreted."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dfpo_jax.models.attention as attention_module
from dfpo_jax.models.attention import attention
from dfpo_jax.sharding import create_mesh, mesh_context


def kernel_inputs(length=256, heads=4, kv_heads=2, width=128, rows=2):
    """A row with padding on the left and one with padding on the right."""
    rng = np.random.default_rng(3)
    q, k, v = (
        rng.normal(size=(rows, length, n, width)).astype(np.float32)
        for n in (heads, kv_heads, kv_heads)
    )
    valid = np.ones((rows, length), bool)
    valid[0, :37] = False
    valid[1, length - 56 :] = False
    mask = np.tril(np.ones((length, length), bool))[None] & valid[:, None, :]
    return q, k, v, valid, mask


@pytest.mark.parametrize("sizes", [None, (1, 2, 2)])
def test_the_tpu_kernel_equals_xla_where_queries_are_valid(sizes):
    q, k, v, valid, mask = kernel_inputs()

    def loss(q, k, v, run):
        out = jnp.where(valid[:, :, None, None], run(q, k, v), 0.0)
        return jnp.sum(jnp.sin(out)), out

    def gradients(run):
        return jax.jit(jax.grad(functools.partial(loss, run=run), (0, 1, 2), has_aux=True))(q, k, v)

    expected = gradients(lambda q, k, v: attention(q, k, v, mask, "xla"))
    context = contextlib.nullcontext() if sizes is None else mesh_context(create_mesh(*sizes))
    with context:
        assert attention_module.splash_can_run(q, k, valid)
        found = gradients(
            lambda q, k, v: attention_module._splash(q, k, v, jnp.asarray(valid), interpret=True)
        )
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, atol=3e-5)


def test_the_tpu_kernel_needs_whole_sequences_and_shapes_that_divide(monkeypatch):
    q, k, v, valid, mask = kernel_inputs(128, rows=4)
    calls = []
    monkeypatch.setattr(
        attention_module, "_splash", lambda q, k, v, valid: calls.append(1) or jnp.zeros_like(q)
    )
    attention(q, k, v, mask, "pallas_tpu", valid)
    assert len(calls) == 1
    attention(q, k, v, mask, "auto", valid)  # not on this platform
    np.testing.assert_allclose(
        attention(q, k, v, mask, "pallas_tpu"), attention(q, k, v, mask, "xla")
    )
    assert len(calls) == 1
    assert not attention_module.splash_can_run(q[:, :100], k[:, :100], valid[:, :100])
    assert not attention_module.splash_can_run(q[..., :64], k[..., :64], valid)
    for sizes, fits in (((4, 1, 2), True), ((1, 1, 4), False), ((8, 1, 1), False)):
        with mesh_context(create_mesh(*sizes)):  # two key heads, four rows
            assert attention_module.splash_can_run(q, k, valid) == fits
    with jax.set_mesh(create_mesh(4, 1, 2)):  # no rules: nobody says how to split the kernel
        assert not attention_module.splash_can_run(q, k, valid)
