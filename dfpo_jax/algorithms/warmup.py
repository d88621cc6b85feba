"""The iterations in which only the critic learns (value pretraining, VC-PPO, arXiv 2503.01491)."""

import math
from collections.abc import Mapping

import jax.numpy as jnp

from dfpo_jax.algorithms.interface import Controls
from dfpo_jax.critics import Critics
from dfpo_jax.types import Array

BEST, WAITED, OVER = "warmup_best", "warmup_waited", "warmup_over"
METRIC = "rollout/explained_variance"


def first_controls(config: Critics) -> dict[str, float]:
    """First values of what a warm-up that ends early remembers; none for one of fixed length.

    "warmup_best": the highest explained variance so far; "warmup_waited": iterations since it rose
    by `critic.warmup_rise`; "warmup_over": 1 once it has settled.
    """
    if config.warmup_patience == 0:
        return {}
    return {BEST: -1e9, WAITED: 0.0, OVER: 0.0}


def policy_scale(config: Critics, step: Array, controls: Mapping[str, Array]) -> Array:
    """[] float32: 0 while only the critic learns, 1 afterwards."""
    learns = step >= config.warmup
    if config.warmup_patience > 0:
        learns |= controls[OVER] > 0.0
    return learns.astype(jnp.float32)


def adapt(config: Critics, controls: Controls, means: Mapping[str, float]) -> dict[str, float]:
    """What the warm-up remembers after an iteration whose terms have these means."""
    found = means.get(METRIC, math.nan)
    if config.warmup_patience == 0 or controls[OVER] > 0.0 or not math.isfinite(found):
        return {}
    if found > controls[BEST] + config.warmup_rise:
        return {BEST: found, WAITED: 0.0}
    waited = controls[WAITED] + 1.0
    return {WAITED: waited, OVER: float(waited >= config.warmup_patience)}
