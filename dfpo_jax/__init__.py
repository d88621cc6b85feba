"""Post-training of language models with a distributional value-flow critic, in JAX."""

import importlib
from types import ModuleType

__version__ = "0.1.0"


def __getattr__(name: str) -> ModuleType:
    """`dfpo_jax.ops`, imported when it is first asked for: JAX takes a second to import."""
    if name == "ops":
        return importlib.import_module("dfpo_jax.ops")
    raise AttributeError(f"module 'dfpo_jax' has no attribute {name!r}")
