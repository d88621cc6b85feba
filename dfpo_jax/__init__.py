"""Post-training of language models with a distributional value-flow critic, in JAX."""

import importlib
import logging
from types import ModuleType

__version__ = "0.2.0"

# transformers logs this when it is imported without PyTorch. The library uses only its tokenizers,
# which do not need PyTorch.
logging.getLogger("transformers").addFilter(
    lambda record: not record.getMessage().startswith("PyTorch was not found")
)


def __getattr__(name: str) -> ModuleType:
    """Imports `dfpo_jax.ops` on first use, because importing JAX takes a second."""
    if name == "ops":
        return importlib.import_module("dfpo_jax.ops")
    raise AttributeError(f"module 'dfpo_jax' has no attribute {name!r}")
