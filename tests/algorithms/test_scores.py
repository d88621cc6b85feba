"""Squared gradient norms of single responses on a mesh, whose devices share the rows."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tiny
from jax.extend.core import jaxprs_in_params

from dfpo_jax.algorithms.old_policy import Evaluated
from dfpo_jax.algorithms.scores import scores
from dfpo_jax.algorithms.trunk import join_sequence
from dfpo_jax.models.transformer import Transformer
from dfpo_jax.objectives import Old
from dfpo_jax.sharding import batch_sharding, create_mesh, mesh_context, put_batch, shardings

MODEL, TEMPERATURE = Transformer(tiny.UNTIED), 0.8


def evaluated(rollout):
    sequence, valid = join_sequence(rollout)
    old = Old(None, rollout.log_probs, None, rollout.mask, {}, None)
    return Evaluated(sequence, valid, old, None, None)


def whole(policy, rollout):
    return scores(MODEL, policy, evaluated(rollout), rollout, TEMPERATURE)


def loops(jaxpr):
    """Lengths of all scans, those inside others included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            yield equation.params["length"]
        for inner in jaxprs_in_params(equation.params):
            yield from loops(inner)


def test_devices_of_a_mesh_share_the_rows():
    """2 x 2 devices take 12 rows in 3 steps, and find what one device finds."""
    rollout, dummy = tiny.ragged_rollout(batch=12), jnp.zeros((1, 1), jnp.int32)
    boxed, mesh = MODEL.init(jax.random.key(0), dummy, dummy)["params"], create_mesh(2, 2, 2)
    policy = tiny.randomised(boxed)
    alone = jax.jit(whole)(policy, rollout)
    inputs = (jax.device_put(policy, nn.unbox(shardings(boxed, mesh))), put_batch(rollout, mesh))
    with mesh_context(mesh):
        traced = jax.jit(whole).trace(*inputs)
        shared = traced.lower().compile()(*inputs)
    assert max(loops(traced.jaxpr.jaxpr)) == 3  # 12 where every device takes all rows
    assert shared.squared_norms.sharding.is_equivalent_to(batch_sharding(mesh), 1)
    np.testing.assert_allclose(shared.squared_norms, alone.squared_norms, rtol=2e-4)
    np.testing.assert_allclose(shared.log_weights, alone.log_weights, rtol=1e-5)
