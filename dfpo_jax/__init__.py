"""Post-training of language models with a distributional value-flow critic, in JAX."""

import importlib
import logging
from types import ModuleType

__version__ = "0.2.0"

# transformers says so when it is imported without PyTorch. Its tokenizers are all that is used
# here, and they do not need PyTorch.
logging.getLogger("transformers").addFilter(
    lambda record: not record.getMessage().startswith("PyTorch was not found")
)


def __getattr__(name: str) -> ModuleType:
    """`dfpo_jax.ops`, imported when it is first asked for: JAX takes a second to import."""
    if name == "ops":
        return importlib.import_module("dfpo_jax.ops")
    raise AttributeError(f"module 'dfpo_jax' has no attribute {name!r}")
