"""Algorithms by name, and the settings each takes."""

from dfpo_jax.algorithms.base import Algorithm, Batch, Context, PolicyConfig
from dfpo_jax.algorithms.critic import CriticConfig
from dfpo_jax.algorithms.dfpo import DFPOConfig, dfpo
from dfpo_jax.algorithms.flow_critic import FlowCriticConfig
from dfpo_jax.algorithms.grpo import GroupConfig, GRPOConfig, grpo
from dfpo_jax.algorithms.ppo import PPOConfig, ppo
from dfpo_jax.algorithms.sft import sft

ALGORITHMS = {
    "dfpo": (dfpo, lambda c: DFPOConfig(c.policy, c.critic, c.flow, c.head, c.risk)),
    "ppo": (ppo, lambda c: PPOConfig(c.policy, c.critic, c.value_clip)),
    "grpo": (grpo, lambda c: GRPOConfig(c.policy, c.group, c.train.samples)),
}
"""Name -> (constructor(model, settings, temperature), its settings from a run's configuration)."""

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "Batch",
    "Context",
    "CriticConfig",
    "DFPOConfig",
    "FlowCriticConfig",
    "GRPOConfig",
    "GroupConfig",
    "PPOConfig",
    "PolicyConfig",
    "dfpo",
    "grpo",
    "ppo",
    "sft",
]
