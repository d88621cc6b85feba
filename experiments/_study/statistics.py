"""The statistics of a study: pure functions of numbers."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

EXACT_RESAMPLES, EXACT_FLIPS = 5, 12  # up to so many seeds, all resamples or flips are enumerated
_RESAMPLES, _FLIPS = 4000, 20_000


class Interval(NamedTuple):
    """An estimate with a bootstrap interval.

    Attributes:
      value: from all seeds.
      low, high: percentiles among the resamples for which the figure is defined; NaN without any.
      undefined: share of the resamples for which it is not.
    """

    value: float
    low: float
    high: float
    undefined: float


def tolerance(levels: Sequence[float], gains: Sequence[float]) -> float:
    """The noise level at which half of the gain without noise is lost.

    Gains are joined by straight lines; the first crossing counts.

    Args:
      levels: increasing, the first 0.
      gains: at these levels.

    Returns:
      A level; inf where half of the gain is never lost; NaN where there is no gain without noise.

    Raises:
      ValueError: levels do not increase from 0, or are not as many as gains.
    """
    if len(levels) != len(gains) or not levels or levels[0] != 0.0:
        raise ValueError(f"levels are {levels} and gains {gains}; as many, the first level 0")
    if any(a >= b for a, b in itertools.pairwise(levels)):
        raise ValueError(f"levels are {levels}; they must increase")
    half = gains[0] / 2
    if not gains[0] > 0.0:
        return math.nan
    for i, (before, gain) in enumerate(itertools.pairwise(gains), start=1):
        if gain <= half:
            width = levels[i] - levels[i - 1]
            return levels[i - 1] + width * (before - half) / (before - gain)
    return math.inf


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed; values may be infinite."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered) - 1e-9), 1) - 1]


def bootstrap(
    figure: Callable[[np.ndarray], float], values: np.ndarray, mass: float = 0.9
) -> Interval:
    """The percentile bootstrap over seeds of a figure of means over seeds.

    A resample draws whole seeds, so that what shares a seed stays together. Up to
    `EXACT_RESAMPLES` seeds, all n^n resamples count; more are drawn with a fixed seed.

    Args:
      figure: of the means [k]; NaN where it is undefined.
      values: [n, k], a row per seed.
      mass: of the interval.
    """
    values = np.asarray(values, np.float64)
    seeds = len(values)
    if seeds <= EXACT_RESAMPLES:
        chosen = np.array(list(itertools.product(range(seeds), repeat=seeds)))
    else:
        chosen = np.random.default_rng(0).integers(seeds, size=(_RESAMPLES, seeds))
    figures = np.array([figure(mean) for mean in values[chosen].mean(axis=1)])
    defined = figures[~np.isnan(figures)]
    tail = (1.0 - mass) / 2
    ends = [percentile(defined, x) for x in (tail, 1.0 - tail)] if len(defined) else [math.nan] * 2
    undefined = 1.0 - len(defined) / len(figures)
    return Interval(figure(values.mean(axis=0)), *(float(end) for end in ends), undefined)


def tolerance_interval(levels: Sequence[float], gains: np.ndarray, mass: float = 0.9) -> Interval:
    """`tolerance` of the gains' means over seeds, with its bootstrap interval.

    Args:
      levels: k of them.
      gains: [seeds, k].
      mass: of the interval.
    """
    return bootstrap(lambda mean: tolerance(levels, mean.tolist()), gains, mass)


def sign_flip_test(differences: Sequence[float]) -> float:
    """p-value of the two-sided paired permutation test that differences are symmetric about 0.

    The statistic is the size of the mean. Up to `EXACT_FLIPS` pairs all 2^n flips of signs count,
    so that p is at least 2^(1 - n); more are drawn with a fixed seed, and p is at least 1 in that
    many. NaN without pairs.
    """
    pairs = np.asarray(differences, np.float64)
    count = len(pairs)
    if count == 0:
        return math.nan
    if count <= EXACT_FLIPS:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=count)))
    else:
        drawn = np.random.default_rng(0).integers(2, size=(_FLIPS, count)) * 2.0 - 1.0
        signs = np.concatenate([np.ones((1, count)), drawn])
    sizes = np.abs(signs @ pairs)
    return float(np.mean(sizes >= sizes[0] - 1e-12 * max(np.abs(pairs).sum(), 1e-300)))
