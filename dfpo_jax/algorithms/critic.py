"""Where a critic reads its features: a trunk of its own, or the policy's."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from dfpo_jax.algorithms.base import check_choice, check_interval
from dfpo_jax.algorithms.policy import response_states
from dfpo_jax.models import lora
from dfpo_jax.models.transformer import Transformer
from dfpo_jax.types import Array, ArrayTree

TRUNKS = ("own", "shared", "detached")


@dataclass(frozen=True)
class CriticConfig:
    """What every critic has, whatever its head.

    Attributes:
      trunk: "own" (a copy of the policy's transformer, trained with the critic; with LoRA a copy
        of the low-rank updates alone, beside the policy's kernels), "shared" (the policy's, critic
        gradients flow into it) or "detached" (the policy's, they do not).
      critic_lambda: lambda of the critic's targets.
      warmup: iterations in which only the critic learns.
      loss_weight: coefficient of the critic's objective beside the policy's.

    Raises:
      ValueError: a value outside its range, named with what is allowed.
    """

    trunk: str = "own"
    critic_lambda: float = 0.95
    warmup: int = 0
    loss_weight: float = 1.0

    def __post_init__(self):
        """Check ranges and names."""
        check_choice(self, "trunk", TRUNKS)
        check_interval(self, "critic_lambda", low=0.0, high=1.0)
        check_interval(self, "warmup", "loss_weight", low=0.0)


def init_critic(
    config: CriticConfig, policy_params: ArrayTree, head_params: ArrayTree
) -> ArrayTree:
    """Critic parameters: the head, and with `trunk="own"` a copy of what trains in the policy."""
    if config.trunk != "own":
        return {"head": head_params}
    trained, _ = lora.split(policy_params)
    trunk = {name: leaf for name, leaf in trained.items() if name != "head"}
    return {"head": head_params, "trunk": jax.tree.map(jnp.copy, trunk)}


def critic_states(
    config: CriticConfig,
    model: Transformer,
    params: ArrayTree,
    policy_states: Array | None,
    sequence: Array,
    valid: Array,
    length: int,
) -> Array:
    """Features [B, R + 1, D] that the critic's head reads at s_0 .. s_R.

    Args:
      config: which trunk.
      model: the transformer both trunks have.
      params: those of policy and critic; of the policy's, only what LoRA keeps as it is is read.
      policy_states: [B, R + 1, D], the policy's hidden states (unused with an own trunk).
      sequence, valid: [B, P + R].
      length: R.
    """
    if config.trunk == "own":
        _, frozen = lora.split(params["policy"])
        trunk = lora.join(params["critic"]["trunk"], jax.lax.stop_gradient(frozen))
        if not model.config.tie_embeddings:
            # The decoder asks for its output projection even where nothing reads it.
            shape = (model.config.d_model, model.config.vocab_size)
            trunk = {**trunk, "head": jnp.zeros(shape, model.config.param_dtype)}
        return response_states(model, trunk, sequence, valid, length)
    if config.trunk == "detached":
        return jax.lax.stop_gradient(policy_states)
    return policy_states


def policy_scale(step: Array, warmup: int) -> Array:
    """0 while the critic warms up, 1 afterwards: [] float32."""
    return (step >= warmup).astype(jnp.float32)
