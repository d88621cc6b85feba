"""What changed between the configuration a run was started with and the one it resumes with."""

from collections.abc import Mapping
from typing import Any

# What a started run cannot change: shapes and meaning of its parameters, and its random numbers.
FIXED = (
    "seed",
    "tokenizer",
    "weights",
    "model",
    "critic.name",
    "critic.trunk",
    "critic.source",
    "critic.units",
    "train.frozen",
    "train.behaviour_lag",
    "partial.tokens",
    "partial.spare",
    "evaluation.out_of_domain",  # accuracies before and after are of the same sets
)
# What runs that were started before there was such a setting did.
_BEFORE = {
    "critic.units": "affine",
    "partial.tokens": 0,
    "partial.spare": 0,
    "partial.rounds": 0,
}
# What shapes of unfinished responses follow from.
_FIXED_WITH_PARTIAL = ("train.samples", "sampling.max_new_tokens")
# Of what is fixed, what only says how the same function is computed.
CHANGEABLE = ("model.dtype", "model.remat", "model.attention", "model.max_positions")


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Settings of a run that differ from those it was started with, each as "key: old -> new".

    Args:
      old, new: `dataclasses.asdict` of the configurations, as JSON gives it back.

    Raises:
      ValueError: one that a started run cannot change (in `FIXED` and not in `CHANGEABLE`).
    """
    changed, refused = [], []
    flat_old, flat_new = _BEFORE | flatten(old), _BEFORE | flatten(new)
    all_fixed = FIXED + (_FIXED_WITH_PARTIAL if flat_old["partial.tokens"] > 0 else ())
    for key in sorted(flat_old.keys() | flat_new.keys()):
        before, after = flat_old.get(key), flat_new.get(key)
        if before != after:
            changed.append(f"config.{key}: {before!r} -> {after!r}")
            fixed = any(key == name or key.startswith(name + ".") for name in all_fixed)
            if fixed and key not in CHANGEABLE:
                refused.append(changed[-1])
    if refused:
        raise ValueError(f"a started run cannot change {'; '.join(refused)}")
    return changed


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names of settings and their values, from nested mappings."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
