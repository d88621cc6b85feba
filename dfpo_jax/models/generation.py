"""The generation settings published with a model: reading, completing and validating them."""

import logging
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from transformers import GenerationConfig

from dfpo_jax.published_files import read_json

_LOG = logging.getLogger(__name__)
FILE = "generation_config.json"
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
_NAMED = re.compile(r"`(\w+)`")


def read_generation_config(directory: pathlib.Path) -> GenerationConfig:
    """The settings in a model's directory.

    Special tokens come from generation_config.json, and from config.json if that file lacks them.
    Ids below 0, which some old files write for "none", count as none. A file with values for
    sampling that does not say whether to sample, such as Llama 2's, turns sampling on.

    Raises:
      ValueError: a file is broken, or a special token is not an id; names the file.
    """
    published: dict[str, Any] = {}
    declared = {}
    for name, values in ((FILE, published), ("config.json", declared)):
        if (directory / name).is_file():
            values |= read_json(directory / name)
            values |= {key: _ids(directory / name, key, values.get(key)) for key in _SPECIAL}
    for key in _SPECIAL:
        if published.get(key) is None:
            published[key] = declared.get(key)
    if "do_sample" not in published and _samples(published):
        published["do_sample"] = True
    return _built(published, strict=False)


def _ids(path: pathlib.Path, key: str, value: Any) -> int | list[int] | None:
    """One id, a list of ids, or None."""
    several = isinstance(value, list) and key == "eos_token_id"
    ids = value if several else [] if value is None else [value]
    if any(type(token) is not int for token in ids):
        raise ValueError(f"{path}: {key} is {value!r}; it must be the id of a token")
    ids = [token for token in ids if token >= 0]
    if several:
        return ids or None
    return ids[0] if ids else None


def _samples(values: Mapping[str, Any]) -> bool:
    """Whether values ask for sampling: one only matters for sampling, and temperature is not 0."""
    names = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
    return values.get("temperature") != 0 and any(values.get(name) is not None for name in names)


def made_valid(config: GenerationConfig) -> GenerationConfig:
    """Removes, and logs, the values that the other settings make meaningless.

    Examples are a temperature for greedy decoding, or a length penalty without beams.
    `transformers` reads published files that have them, but refuses to write them.

    Raises:
      ValueError: `transformers` refuses the rest too; has its message.
    """
    return _built(config.to_dict(), strict=True)


def _built(values: dict[str, Any], strict: bool) -> GenerationConfig:
    """Settings with these values, except those that a message of `transformers` names."""
    left_out: dict[str, Any] = {}
    while True:
        try:
            config = GenerationConfig.from_dict(values)
            config.validate(strict=strict)
            break
        except ValueError as error:
            names = [name for name in _NAMED.findall(str(error)) if values.get(name) is not None]
            if not names or names[0] == "do_sample":
                raise
            left_out[names[0]] = values.pop(names[0])
    if left_out:
        _LOG.warning("generation settings without effect are left out: %s", left_out)
    return config
