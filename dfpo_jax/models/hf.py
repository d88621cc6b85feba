"""Reads and writes weights of `transformers` models (safetensors)."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import huggingface_hub
import jax
import numpy as np
import safetensors
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from jax.sharding import Mesh
from safetensors.numpy import save_file
from transformers import GenerationConfig, PreTrainedTokenizerBase

from dfpo_jax.models import weights
from dfpo_jax.models.config import TransformerConfig
from dfpo_jax.models.generation import made_valid
from dfpo_jax.models.hf_config import from_hf, to_hf
from dfpo_jax.models.weights import (
    abstract_params,
    file_tensors,
    flatten,
    load_params,
    to_file_layout,
)
from dfpo_jax.published_files import broken, read_json
from dfpo_jax.sharding import LOGICAL_RULES, Rules
from dfpo_jax.types import ArrayTree

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_FLOATS = ("F32", "BF16", "F16")
_NO_PARAMETER = re.compile(r"(.*\.)?rotary_emb\.inv_freq")


def load(
    path_or_hub_id: str | os.PathLike,
    *,
    mesh: Mesh | None = None,
    rules: Rules = LOGICAL_RULES,
    **overrides: Any,
) -> tuple[TransformerConfig, ArrayTree]:
    """Configuration and parameters of a Llama, Qwen2 or Qwen3 model.

    Tensors go from the file to the mesh shard by shard; each process reads only the shards of its
    devices. The file's type is converted to the configuration's `param_dtype`.

    Args:
      path_or_hub_id: a directory with config.json and safetensors files, or the id of a model on
        the Hugging Face hub, which is downloaded to its cache.
      mesh: mesh of the parameters; one device (1x1x1) by default.
      rules: logical axes to mesh axes.
      **overrides: fields of `TransformerConfig`, such as `dtype` (by default the one the model
        declares), `param_dtype` (float32 by default), `remat` or `max_positions`.

    Returns:
      The configuration, and unboxed parameters with the structure of
      `Transformer(config).init(...)["params"]` without LoRA.

    Raises:
      ValueError: there is no such directory or id; the architecture is not supported; a tensor is
        missing, unknown, duplicated, or of a wrong shape or type. The message names it.
    """
    with _opened(path_or_hub_id, overrides) as (source, config, ignored):
        return config, load_params(source, config, mesh, rules, ignored)


def check(path_or_hub_id: str | os.PathLike, **overrides: Any) -> None:
    """Raises the errors of `load`; downloads the files but reads only names and shapes."""
    with _opened(path_or_hub_id, overrides) as (source, config, ignored):
        weights.check(source, config, ignored)


@contextlib.contextmanager
def _opened(path_or_hub_id, overrides) -> Iterator[tuple]:
    """The open files, their configuration, and names of tensors that are not parameters."""
    directory = directory_of(path_or_hub_id, with_weights=True)
    config = model_config(directory, **overrides)
    with contextlib.ExitStack() as stack:
        source = SafetensorsSource(directory, stack)
        ignored = {name for name in source.names() if _NO_PARAMETER.fullmatch(name)}
        if config.tie_embeddings and {EMBEDDING, HEAD} <= source.names():
            _check_tied(source)
            ignored.add(HEAD)
        yield source, config, frozenset(ignored)


def model_config(path_or_hub_id: str | os.PathLike, **overrides: Any) -> TransformerConfig:
    """Only the configuration, without the weights; arguments and errors as for `load`."""
    path = directory_of(path_or_hub_id) / "config.json"
    if not path.is_file():
        raise ValueError(f"{path.parent} has no config.json")
    declared = read_json(path)
    try:
        return from_hf(declared, **overrides)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def directory_of(path_or_hub_id: str | os.PathLike, with_weights: bool = False) -> pathlib.Path:
    """The given directory, or the directory that a hub id is downloaded to.

    Args:
      path_or_hub_id: a directory, or the id of a model on the Hugging Face hub.
      with_weights: whether to download the weights too.

    Raises:
      ValueError: there is no such directory or id.
    """
    path = pathlib.Path(path_or_hub_id)
    if path.is_dir():
        return path
    try:
        patterns = ["*.json", "*.jinja"] + ["*.safetensors"] * with_weights
        found = huggingface_hub.snapshot_download(str(path_or_hub_id), allow_patterns=patterns)
        return pathlib.Path(found)
    except HFValidationError:
        message = "is neither a directory nor the id of a model"
    except LocalEntryNotFoundError:
        message = (
            "is not a directory, and the Hugging Face hub cannot be reached; give the path of a "
            "directory, or download the model first on a machine with network"
        )
    except HfHubHTTPError as error:
        message = f"is not a directory, and the Hugging Face hub refuses it: {type(error).__name__}"
    raise ValueError(f"{str(path_or_hub_id)!r} {message}") from None


class SafetensorsSource:
    """The safetensors files of a directory, see `weights.Source`.

    Args:
      directory: has model.safetensors, or an index and the files that the index names.
      stack: closes the files.

    Raises:
      ValueError: there are no such files, one is a git-lfs pointer or cut off, the index disagrees
        with them, or a tensor is in two files.
    """

    naming, interleaved = "hf", False

    def __init__(self, directory: pathlib.Path, stack: contextlib.ExitStack):
        """Opens the files and reads the names."""
        index = None
        if (directory / SINGLE).is_file():
            files = [SINGLE]
        elif (directory / INDEX).is_file():
            index = read_json(directory / INDEX).get("weight_map")
            if not isinstance(index, dict) or not index:
                raise ValueError(f"{directory / INDEX} has no weight_map")
            files = sorted(set(index.values()))
        else:
            raise ValueError(f"{directory} has neither {SINGLE} nor {INDEX}")
        self._files: dict[str, Any] = {}
        where: dict[str, str] = {}
        for file in files:
            if not (directory / file).is_file():
                raise ValueError(f"{directory} has no {file}, which {INDEX} names")
            opened = stack.enter_context(_open(directory / file))
            for name in opened.keys():
                if name in where:
                    raise ValueError(f"tensor {name} is in both {where[name]} and {file}")
                self._files[name], where[name] = opened, file
        for name in sorted(where.keys() | (index or where).keys()):
            if index is not None and index.get(name) != where.get(name):
                raise ValueError(
                    f"tensor {name} is in {where.get(name, 'no file')}; {INDEX} says "
                    f"{index.get(name, 'no file')}"
                )

    def names(self) -> set[str]:
        """Every tensor in the files."""
        return set(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return tuple(self._files[name].get_slice(name).get_shape())

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A part of a tensor; reads only that part."""
        tensor = self._files[name].get_slice(name)
        if tensor.get_dtype() not in _FLOATS:
            raise ValueError(
                f"tensor {name} has type {tensor.get_dtype()}; it must be one of "
                f"{', '.join(_FLOATS)}"
            )
        return tensor[index]


def _open(path: pathlib.Path) -> Any:
    """Opens a safetensors file, which checks its header and length."""
    try:
        return safetensors.safe_open(path, "numpy")
    except safetensors.SafetensorError as error:
        raise broken(path, "safetensors file", error) from error


def _check_tied(source: SafetensorsSource, rows: int = 4096) -> None:
    """Raises unless the head equals the embedding, as tied embeddings require."""
    shape = source.shape(EMBEDDING)
    same = source.shape(HEAD) == shape
    for start in range(0, shape[0] if same else 0, rows):
        part = slice(start, min(start + rows, shape[0])), slice(0, shape[1])
        same = same and np.array_equal(source.read(EMBEDDING, part), source.read(HEAD, part))
    if not same:
        raise ValueError(
            f"tie_embeddings is True, but tensor {HEAD} differs from {EMBEDDING}; pass "
            "tie_embeddings=False to load both"
        )


def save(
    directory: str | os.PathLike,
    config: TransformerConfig,
    params: ArrayTree,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    generation_config: GenerationConfig | None = None,
    max_file_bytes: int = 5 * 10**9,
) -> None:
    """Writes a model for `transformers.AutoModelForCausalLM.from_pretrained` and `load`.

    It writes everything beside `directory` and moves it there at the end, so an existing directory
    is always complete. Host memory needs room for one file.

    Args:
      directory: must be new or empty.
      config: the configuration of the parameters; `hf_family` must know its family.
      params: the decoder's parameters, on devices of this process, with LoRA folded into them
        (`lora.fold`). They are written in their own type.
      tokenizer: written too, with its chat template; its special tokens end generation. For the
        family Qwen2, `transformers.AutoTokenizer` makes a Qwen2 tokenizer of any tokenizer; read
        another kind with `PreTrainedTokenizerFast.from_pretrained`.
      generation_config: written without the values that `generation.made_valid` leaves out; made
        from the tokenizer's special tokens by default.
      max_file_bytes: the largest file, unless a single tensor is larger.

    Raises:
      ValueError: `directory` is a file or not empty; the parameters are not those of `config`;
        the tokenizer has more tokens than the model; no family fits.
    """
    directory = pathlib.Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ValueError(f"{directory} exists and is not an empty directory")
    _check_params(config, params)
    if tokenizer is not None and len(tokenizer) > config.vocab_size:
        raise ValueError(f"tokenizer has {len(tokenizer)} tokens; the model {config.vocab_size}")
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    special = {name: tokenizer and getattr(tokenizer, name) for name in names}
    hf_config = to_hf(config, **special)
    hf_config.dtype = jax.tree.leaves(params)[0].dtype.name
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=directory.parent, prefix=f".{directory.name}."
    ) as temporary:
        place = pathlib.Path(temporary) / "model"
        place.mkdir()
        hf_config.save_pretrained(place)
        made_valid(generation_config or GenerationConfig(**special)).save_pretrained(place)
        if tokenizer is not None:
            tokenizer.save_pretrained(place)
        _write_tensors(place, config, params, max_file_bytes)
        if directory.exists():
            directory.rmdir()
        shutil.move(place, directory)


def _check_params(config: TransformerConfig, params: ArrayTree) -> None:
    """Raises unless the tree has the configuration's parameters, on this process, of one type."""
    expected, found = flatten(abstract_params(config)), flatten(params)
    if different := sorted(expected.keys() ^ found.keys()):
        raise ValueError(f"params and config disagree about {', '.join(different)}")
    for path, leaf in found.items():
        if leaf.shape != expected[path].shape:
            raise ValueError(f"{path} has shape {leaf.shape}, not {expected[path].shape}")
        if not getattr(leaf, "is_fully_addressable", True):
            raise ValueError(f"{path} is spread over several processes; gather it first")
    if len(types := {leaf.dtype.name for leaf in found.values()}) > 1:
        raise ValueError(f"params have types {', '.join(sorted(types))}; cast them to one")


def _groups(config: TransformerConfig, params: ArrayTree, limit: int) -> Iterator[list]:
    """The tensors in order, in groups of one tensor or at most `limit` bytes."""
    group, size = [], 0
    for entry in file_tensors(config, params):
        count = entry[-1].size * entry[-1].dtype.itemsize
        if group and size + count > limit:
            yield group
            group, size = [], 0
        group.append(entry)
        size += count
    yield group


def _write_tensors(place: pathlib.Path, config, params: ArrayTree, limit: int) -> None:
    """Writes the safetensors files, and an index if there are several."""
    flat, groups = flatten(params), list(_groups(config, params, limit))
    weight_map, total = {}, 0
    for number, group in enumerate(groups, start=1):
        file = (
            SINGLE if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        )
        tensors = {
            name: to_file_layout(row, flat[row.path], layer) for row, layer, name, _ in group
        }
        save_file(tensors, place / file, metadata={"format": "pt"})
        # safetensors makes the file readable by its owner only; copy another file's mode.
        os.chmod(place / file, (place / "config.json").stat().st_mode)
        weight_map |= dict.fromkeys(tensors, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    if len(groups) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (place / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
