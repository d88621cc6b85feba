"""The iterations in which only the critic learns (value pretraining, VC-PPO, arXiv 2503.01491)."""

import math
from collections.abc import Mapping

import jax.numpy as jnp

from dfpo_jax.algorithms.interface import Controls
from dfpo_jax.critics import Critics
from dfpo_jax.metric import Metric
from dfpo_jax.types import Array

BEST, WAITED, OVER = "warmup_best", "warmup_waited", "warmup_over"
METRIC = "rollout/explained_variance"
_WHEN = "with `critic.warmup_patience` above 0"
METRICS = (
    Metric(
        METRIC,
        "How much of the returns of the iteration's responses the critic explains that the "
        "iteration starts with, before it learns from them, over all their tokens.",
        formula="`1 - Var(G - V) / Var(G)` with observed returns G (lambda 1, with the rewards "
        "that objectives add to tokens) and the mean V of the critic's law; 0 where G does not "
        "vary",
        healthy="Above 0, which a constant reaches, and rising. Below 1 even for the best critic, "
        "see `eval/critic/explained_variance`.",
        advice="Near 0 the critic is no better than a mean: see `eval/critic/explained_variance`. "
        "Below 0 it is worse than that; lower `critic_optimizer.learning_rate`, or train it first "
        "(`critic.warmup`).",
        when="with a critic and `returns.outcome`",
    ),
    Metric(
        f"policy/{BEST}",
        "Highest explained variance of the warm-up so far, among rises of at least "
        "`critic.warmup_rise`; -1e9 before the first.",
        healthy="It rises, and then stays.",
        advice="Where it stays near 0, a longer warm-up will not help: the critic can tell "
        "nothing. See `eval/critic/explained_variance`.",
        when=_WHEN,
    ),
    Metric(
        f"policy/{WAITED}",
        "Iterations since it rose.",
        healthy="At `critic.warmup_patience` the warm-up ends.",
        advice="Where the warm-up ends too early, raise `critic.warmup_patience`, or lower "
        "`critic.warmup_rise`.",
        when=_WHEN,
    ),
    Metric(
        f"policy/{OVER}",
        "1 once the warm-up has ended because the critic has settled, else 0. It also ends after "
        "`critic.warmup` iterations, which leaves this at 0.",
        when=_WHEN,
    ),
)


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
