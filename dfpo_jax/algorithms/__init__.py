"""Algorithms by name, and the settings each takes."""

from dfpo_jax.algorithms.base import Algorithm, Batch, Context, PolicyConfig
from dfpo_jax.algorithms.critic import CriticConfig
from dfpo_jax.algorithms.dfpo import DFPOConfig, dfpo
from dfpo_jax.algorithms.flow_critic import FlowCriticConfig
from dfpo_jax.algorithms.ppo import PPOConfig, ppo
from dfpo_jax.algorithms.sft import sft

ALGORITHMS = {"dfpo": (dfpo, DFPOConfig), "ppo": (ppo, PPOConfig)}
"""Name -> (constructor(model, config, temperature), its configuration)."""

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "Batch",
    "Context",
    "CriticConfig",
    "DFPOConfig",
    "FlowCriticConfig",
    "PPOConfig",
    "PolicyConfig",
    "dfpo",
    "ppo",
    "sft",
]
