"""What the backward pass keeps changes neither results nor gradients, only memory."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfpo_jax.models import PRESETS, Transformer

CONFIG = dataclasses.replace(PRESETS["tiny"], num_layers=2, qk_norm=True)
TOKENS = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 9)).astype(np.int32)
VALID = np.ones((2, 9), np.float32)
VALID[0, :4] = 0


@pytest.fixture(scope="module")
def params():
    return nn.unbox(jax.jit(Transformer(CONFIG).init)(jax.random.key(0), TOKENS, VALID))


def loss(config):
    model = Transformer(config)

    def run(params):
        hidden, _ = model.apply(params, TOKENS, VALID)
        return jnp.sum(jnp.sin(hidden) * VALID[..., None])

    return run


@pytest.mark.parametrize("remat", ["full", "dots", "offload"])
def test_gradients_are_those_without(params, remat):
    config = dataclasses.replace(CONFIG, remat=remat)
    value, grads = jax.jit(jax.value_and_grad(loss(CONFIG)))(params)
    again, regrads = jax.jit(jax.value_and_grad(loss(config)))(params)
    np.testing.assert_allclose(again, value, rtol=1e-5)
    for x, y in zip(jax.tree.leaves(regrads), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def kept(remat):
    """Elements per layer that the forward scan hands to the backward one, and where they lie."""
    config = dataclasses.replace(CONFIG, remat=remat)
    shapes = jax.eval_shape(
        lambda key: nn.unbox(Transformer(config).init(key, TOKENS, VALID)), jax.random.key(0)
    )
    jaxpr = jax.make_jaxpr(jax.grad(loss(config)))(shapes).jaxpr
    forward, backward = (e for e in jaxpr.eqns if e.primitive.name == "scan")
    stacked = forward.outvars[forward.params["num_carry"] :]
    used = [v for v in stacked if v in set(backward.invars)]
    return sum(v.aval.size for v in used) // CONFIG.num_layers, {str(v.aval) for v in used}


def test_policies_keep_less_and_less():
    rows = TOKENS.size
    none, dots, full, offload = (kept(remat) for remat in ("none", "dots", "full", "offload"))
    assert none[0] > dots[0] > full[0]
    assert dots[0] >= rows * (2 * CONFIG.d_ff + CONFIG.d_model)
    assert full[0] == rows * CONFIG.d_model
    assert offload[0] == full[0]
    assert all("host" in shape for shape in offload[1])
    assert not any("host" in shape for shape in full[1])
