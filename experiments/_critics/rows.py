"""The critics of the table: settings by dotted name, on top of the configuration's own."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from dfpo_jax.algorithms import PRESETS


def _of_preset(name: str) -> dict[str, Any]:
    """What a preset says of its critic; how long it learns alone is the laboratory's business."""
    found = {path: x for path, x in PRESETS[name].items() if path.startswith("critic.")}
    return {path: x for path, x in found.items() if not path.startswith("critic.warmup")}


CRITICS = {
    "scalar": _of_preset("ppo"),
    "quantile": {"critic.name": "quantile"},
    "dvpo": _of_preset("dvpo"),
    "hl_gauss": _of_preset("hl_gauss"),
    "c51": _of_preset("c51"),
    "iqn": _of_preset("iqn"),
    "ensemble": {"critic.name": "ensemble"},
    "robust": _of_preset("robust_bellman"),
    "scalar_flow": _of_preset("scalar_flow"),
    "value_flows": _of_preset("value_flows"),
    "flowcritic": _of_preset("flowcritic"),
    "dfpo": {"critic.name": "flow"},
}

# What a critic may read beside or instead of its trunk's states: on, off.
_INPUTS = {"confidence": (True, False), "pooled": (True, False), "whiten": (0.01, 0.0)}
_TAILS = ("cvar", "upper_gain", "mean_shift", "tail_shape", "tail_curvature")


def _toggled(flow: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """DFPO's critic without each component that is on, with each that is off, in other units."""
    rows = {}
    for name, weight in (("anchor", 1.0), ("dcfm", 1.0), ("geometry", 1.0)):
        rows |= _switched(flow, name, [f"{name}_weight"], weight)
    rows |= _switched(flow, "risk", [f"{name}_weight" for name in _TAILS[:3]], 0.1)
    rows |= _switched(flow, "tail shape", [f"{name}_weight" for name in _TAILS[3:]], 0.1)
    for mode in ("emphasize", "discount"):
        if flow["uncertainty"] == "none":
            rows[f"dfpo with {mode}"] = {"critic.flow.uncertainty": mode}
    if flow["uncertainty"] != "none":
        rows["dfpo without uncertainty"] = {
            "critic.flow.uncertainty": "none",
            "critic.flow.uncertainty_temperature": 1.0,
        }
    rows["dfpo in asinh units"] = {"critic.units": "asinh"}
    return {name: {"critic.name": "flow", **settings} for name, settings in rows.items()}


def _switched(
    flow: Mapping[str, Any], name: str, fields: list[str], weight: float
) -> dict[str, dict[str, Any]]:
    is_on = any(flow[field] > 0.0 for field in fields)
    settings = {f"critic.flow.{field}": 0.0 if is_on else weight for field in fields}
    if name == "geometry" and is_on:  # nothing trains the map that one step reads
        settings |= {"critic.flow.inference": "ode", "critic.flow.geometry": "map"}
    return {f"dfpo {'without' if is_on else 'with'} {name}": settings}


def rows_of(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """Every critic, DFPO's with each component switched, and two critics that read other inputs.

    Args:
      config: the run's; its sections of the critics are where the rows start from.
    """
    inputs = {
        f"with {trunk} trunk": {"critic.trunk": trunk}
        for trunk in ("own", "detached")
        if trunk != config.critic.trunk
    }
    more = {}
    for name, (on, off) in _INPUTS.items():
        reads = bool(config.critic[name])
        words = f"{'without' if reads else 'with'} {name}"
        inputs[words] = {f"critic.{name}": off if reads else on}
        more |= {} if reads else {f"critic.{name}": on}
        if len(more) > 1:
            inputs["with " + " and ".join(x.partition(".")[2] for x in more)] = dict(more)
    others = {
        f"{name} {words}": {**CRITICS[name], **settings}
        for words, settings in inputs.items()
        for name in ("scalar", "dfpo")
    }
    return CRITICS | _toggled(config.critic.flow) | others


def chosen(names: list[str], rows: Mapping[str, Any]) -> list[str]:
    """The rows that a flag names; "critics" stands for every critic, "all" for every row.

    Raises:
      ValueError: an unknown name; the message lists what there is.
    """
    found = []
    for name in names:
        if name not in ("critics", "all", *rows):
            raise ValueError(f"rows has {name!r}; it must be critics, all, or of {'; '.join(rows)}")
        found += {"critics": list(CRITICS), "all": list(rows)}.get(name, [name])
    return list(dict.fromkeys(found))
