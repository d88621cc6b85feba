"""Algorithms, composed of critics, advantages and objectives; presets of published ones."""

from dfpo_jax.algorithms.compose import compose
from dfpo_jax.algorithms.config import AlgorithmConfig, LogProbs, Returns
from dfpo_jax.algorithms.interface import Algorithm, Batch, Context
from dfpo_jax.algorithms.presets import PRESETS
from dfpo_jax.algorithms.sft import sft

__all__ = [
    "PRESETS",
    "Algorithm",
    "AlgorithmConfig",
    "Batch",
    "Context",
    "LogProbs",
    "Returns",
    "compose",
    "sft",
]
