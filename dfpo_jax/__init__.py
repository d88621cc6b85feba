"""Post-training of language models with a distributional value-flow critic, in JAX."""

__version__ = "0.1.0"
