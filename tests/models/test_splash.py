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
    rng = np.random.default_rng(3)
    return tuple(
        rng.normal(size=(rows, length, n, width)).astype(np.float32)
        for n in (heads, kv_heads, kv_heads)
    )


@pytest.mark.parametrize(
    ("length", "sizes", "several"),
    [
        (256, None, False),
        (200, None, False),
        (256, (1, 2, 2), False),
        (200, None, True),
        (256, (1, 2, 2), True),
    ],
)
def test_the_tpu_kernel_equals_xla(length, sizes, several):
    inputs, segments = kernel_inputs(length), None
    if several:
        rows = len(inputs[0])
        segments = jnp.sort(jax.random.randint(jax.random.key(0), (rows, length), 0, 4), axis=1)

    def loss(q, k, v, run):
        out = run(q, k, v, segments=segments)
        return jnp.sum(jnp.sin(out)), out

    def gradients(run):
        return jax.jit(jax.grad(functools.partial(loss, run=run), (0, 1, 2), has_aux=True))(*inputs)

    expected = gradients(functools.partial(attention, implementation="xla"))
    context = contextlib.nullcontext() if sizes is None else mesh_context(create_mesh(*sizes))
    with context:
        assert attention_module.splash_can_run(*inputs[:2])
        found = gradients(functools.partial(attention_module._splash, interpret=True))
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert x.shape == y.shape
        np.testing.assert_allclose(x, y, atol=3e-5)


def test_the_tpu_kernel_needs_shapes_that_divide(monkeypatch):
    q, k, v = kernel_inputs(128, rows=4)
    calls = []
    monkeypatch.setattr(
        attention_module, "_splash", lambda q, *_: calls.append(1) or jnp.zeros_like(q)
    )
    attention(q, k, v, "pallas_tpu")
    assert len(calls) == 1
    attention(q, k, v, "auto")  # not on this platform
    assert len(calls) == 1
    assert not attention_module.splash_can_run(q[:, :100], k[:, :100])
    assert not attention_module.splash_can_run(q[..., :64], k[..., :64])
    for sizes, fits in (((4, 1, 2), True), ((1, 1, 4), False), ((8, 1, 1), False)):
        with mesh_context(create_mesh(*sizes)):  # two key heads, four rows
            assert attention_module.splash_can_run(q, k) == fits
    with jax.set_mesh(create_mesh(4, 1, 2)):  # no rules: nobody says how to split the kernel
        assert not attention_module.splash_can_run(q, k)
