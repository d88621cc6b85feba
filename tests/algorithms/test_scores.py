"""Squared gradient norms of single responses on a mesh, whose devices share the rows."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.extend.core import jaxprs_in_params

from dfpo_jax.algorithms.old_policy import OldPolicy
from dfpo_jax.algorithms.scores import scores
from dfpo_jax.algorithms.trunk import join_sequence
from dfpo_jax.models.transformer import Transformer
from dfpo_jax.objectives import Old
from dfpo_jax.sharding import batch_sharding, create_mesh, mesh_context, put_batch, shardings

MODEL, TEMPERATURE = Transformer(tiny.UNTIED), 0.8


def evaluated(rollout):
    sequence, valid = join_sequence(rollout)
    old = Old(None, rollout.log_probs, None, rollout.mask, {}, None)
    return OldPolicy(sequence, valid, old, None, None)


def whole(policy, rollout):
    return scores(MODEL, policy, evaluated(rollout), rollout, TEMPERATURE)


def loops(jaxpr):
    """Lengths of all scans, those inside others included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            yield equation.params["length"]
        for inner in jaxprs_in_params(equation.params):
            yield from loops(inner)


def on_a_mesh():
    """12 rows and a policy, on one device and on 8, of which 2 x 2 share the rows."""
    rollout, dummy = tiny.ragged_rollout(batch=12), jnp.zeros((1, 1), jnp.int32)
    boxed = jax.eval_shape(MODEL.init, jax.random.key(0), dummy, dummy)["params"]
    policy = tiny.randomised(jax.tree.map(lambda x: np.zeros(x.shape), nn.unbox(boxed)))
    mesh = create_mesh(2, 2, 2)
    placed = (jax.device_put(policy, nn.unbox(shardings(boxed, mesh))), put_batch(rollout, mesh))
    return (policy, rollout), placed, mesh


def test_devices_take_rows_side_by_side():
    _, placed, mesh = on_a_mesh()
    with mesh_context(mesh):
        traced = jax.jit(whole).trace(*placed)
    assert max(loops(traced.jaxpr.jaxpr)) == 3  # 12 where every device takes all rows


@pytest.mark.slow
def test_a_mesh_finds_what_one_device_finds():
    alone, placed, mesh = on_a_mesh()
    alone = jax.jit(whole)(*alone)
    with mesh_context(mesh):
        shared = jax.jit(whole)(*placed)
    assert shared.squared_norms.sharding.is_equivalent_to(batch_sharding(mesh), 1)
    np.testing.assert_allclose(shared.squared_norms, alone.squared_norms, rtol=2e-4)
    np.testing.assert_allclose(shared.log_weights, alone.log_weights, rtol=1e-5)
