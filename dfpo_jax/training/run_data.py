"""Digests of a run's prompts and data, and the checks of a resumed run against them."""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dfpo_jax.published_files import read_json
from dfpo_jax.tasks.base import Item
from dfpo_jax.training.config import Config
from dfpo_jax.training.run import Run

_LOG = logging.getLogger(__name__)
FILE = "data.json"
_SECTIONS = {"in_domain": "task", "out_of_domain": "out_of_domain"}
_AS_TOKENS = " (as tokens)"


def digests(run: Run) -> dict[str, str]:
    """Digests of the held-out prompts, as text with answers and as tokens, and of the first batch.

    The tokens also depend on the tokenizer and the chat template with its settings.
    """
    found = {}
    for name, held_out in run.evaluations.items():
        found[name] = _conversations(held_out.items)
        found[name + _AS_TOKENS] = _digest([held_out.sampler.encode(i) for i in held_out.items])
    return found | {
        "train": _conversations(run.train_task.batch(0, run.config.train.prompts)),
    }


def data_digests(run: Run) -> dict[str, str]:
    """Digests of each file of data and each split from the hub, including unused rows.

    Keys are such as "task, train" or "task, held_out".
    """
    tasks = [("task", run.train_task)]
    tasks += [(_SECTIONS[name], held_out.task) for name, held_out in run.evaluations.items()]
    return {
        f"{section}, {split}": digest
        for section, task in tasks
        for split, digest in task.digests.items()
    }


def check_data(workdir: Path, config: Config, new: Mapping[str, str]) -> None:
    """Refuse data that changed since the run was started, unless a setting accepts it.

    Args:
      workdir: the run's directory; data.json has the digests of its start or last resume.
      config: the resumed run's configuration.
      new: `data_digests` of the resumed run.

    Raises:
      ValueError: data changed, and `accept_changed_data` of its section is False; names both.
    """
    path = workdir / FILE
    old = read_json(path) if path.exists() else {}
    for key in sorted(old.keys() & new.keys()):
        if old[key] == new[key]:
            continue
        section, _, split = key.partition(", ")
        settings = getattr(config, section)
        own = settings.parameters.get("held_out") if split == "held_out" else ""
        what = f"{own or settings.dataset} ({section}, {split} data)"
        if not settings.accept_changed_data:
            raise ValueError(
                f"{what} is not what the run was started with: its content has changed, or "
                f"{section} names other data; restore it, or accept the new data with "
                f"{section}.accept_changed_data=True"
            )
        _LOG.warning("changed since the run was started: the content of %s", what)


def check_prompts(path: Path, config: Config, new: Mapping[str, str]) -> None:
    """Compare with the prompts that a run began with, if its file has their digests.

    Args:
      path: before.json of the run.
      config: the resumed run's configuration.
      new: `digests` of the resumed run.

    Raises:
      ValueError: the held-out prompts have changed, and `accept_changed_data` of their section is
        False.
    """
    old = read_json(path).get("prompts", {}) if path.exists() else {}
    different = sorted(name for name in old if old[name] != new.get(name))
    as_tokens_too = {name + _AS_TOKENS for name in different}
    different = [name for name in different if name not in as_tokens_too]
    accepted = [name for name in different if _accepts(config, name)]
    refused = [name for name in different if name != "train" and name not in accepted]
    if refused:
        raise ValueError(
            f"the held-out prompts of {', '.join(refused)} are not those that the run began "
            "with, so accuracies before and after could not be compared; do not change task, "
            "out_of_domain, evaluation.prompts, their files or the chat template, or set "
            "accept_changed_data of the section"
        )
    for name in accepted:
        _LOG.warning(
            "changed since the run was started: the held-out prompts of %s; accuracies before and "
            "after are of different prompts",
            name,
        )
    if "train" in different:
        _LOG.warning("changed since the run was started: the training prompts")


def _accepts(config: Config, name: str) -> bool:
    section = _SECTIONS.get(name.removesuffix(_AS_TOKENS))
    return section is not None and getattr(config, section).accept_changed_data


def _conversations(items: Iterable[Item]) -> str:
    return _digest([[str(item.conversation), item.answer] for item in items])


def _digest(values: list[Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]
