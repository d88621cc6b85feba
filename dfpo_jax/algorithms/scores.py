"""How much every response weighs in the gradient of an off-policy update."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from dfpo_jax import ops
from dfpo_jax.advantages import Scores
from dfpo_jax.algorithms.old_policy import OldPolicy
from dfpo_jax.algorithms.trunk import hidden_states, response_states, token_statistics
from dfpo_jax.models import lora
from dfpo_jax.models.transformer import Transformer
from dfpo_jax.sharding import BATCH_AXES, batch_devices, single_row_rules
from dfpo_jax.types import Array, ArrayTree, Rollout


def scores(
    model: Transformer,
    policy: ArrayTree,
    found: OldPolicy,
    rollout: Rollout,
    temperature: float,
) -> Scores:
    """Squared norms of grad log pi(y) and log pi(y) - log mu(y) of every response (VCPO).

    The gradient, by all that trains in the policy, takes a backward pass for every response alone
    (arXiv 2602.17616, whose code does so with micro-batches of one). Every device of the mesh's
    data axes takes those of its own rows, one after the other, and needs memory for one gradient,
    which only the tensor axis splits.

    Args:
      model: the policy.
      policy: its parameters at the start of the iteration.
      found: the rollout under them.
      rollout: with the log-probabilities that it was drawn with.
      temperature: divides the logits.
    """
    trained, rest = lora.split(policy)

    def log_prob(trained, sequence, valid, tokens, mask):
        params = lora.join(trained, rest)
        hidden = hidden_states(model, params, sequence[None], valid[None])
        states = response_states(hidden, len(tokens))
        found, _ = token_statistics(model, params, states, tokens[None], temperature)
        return jnp.sum(found[0] * mask)

    def squared_norm(*row):
        return optax.tree.norm(jax.grad(log_prob)(trained, *row), squared=True)

    mask = found.old.mask
    norms = _by_row(squared_norm, (found.sequence, found.valid, rollout.tokens, mask))
    return Scores(norms, ops.row_sum(found.old.log_probs - rollout.log_probs, mask))


def _by_row(function, rows) -> Array:
    """`function` of each row alone, [B, ...] -> [B]: one row per device of the data axes at once.

    A plain `lax.map` would take all rows one by one, and every device would compute all of them.
    """
    devices = batch_devices()

    def split(x):  # [B / devices, devices, ...]: each device keeps its rows
        x = jnp.swapaxes(x.reshape(devices, -1, *x.shape[1:]), 0, 1)
        return nn.with_logical_constraint(x, (None, "batch", *(None,) * (x.ndim - 2)))

    together = jax.vmap(function, spmd_axis_name=BATCH_AXES)
    rows = jax.tree.map(split, rows)
    with single_row_rules():
        found = jax.lax.map(lambda row: together(*row), rows)
    return jnp.swapaxes(found, 0, 1).reshape(-1)
