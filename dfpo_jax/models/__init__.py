from dfpo_jax.models.config import PRESETS, TransformerConfig
from dfpo_jax.models.lora import LoraConfig
from dfpo_jax.models.transformer import Transformer
from dfpo_jax.models.value_flow import ValueFlow, ValueFlowConfig
from dfpo_jax.models.value_heads import EnsembleHead, ImplicitQuantileHead, QuantileHead, ScalarHead

__all__ = [
    "PRESETS",
    "EnsembleHead",
    "ImplicitQuantileHead",
    "LoraConfig",
    "QuantileHead",
    "ScalarHead",
    "Transformer",
    "TransformerConfig",
    "ValueFlow",
    "ValueFlowConfig",
]
