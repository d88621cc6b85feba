"""Value units x = (G - mu) / s, which follow the rewards of a run; ours."""

import numpy as np

from dfpo_jax.algorithms.interface import Controls, Observed

_MOMENTUM = 0.05
_COMPARED = 1024  # rewards of which all pairs are compared


def value_units(controls: Controls, observed: Observed, kind: str = "affine") -> dict[str, float]:
    """The units of an iteration, as the controls "value_shift" (mu) and "value_scale" (s).

    "affine": with a known range of rewards, its midpoint and half its width. Without: the median
    and half the 10-90 % spread of the rewards seen, taken over at the first iteration and slowly
    averaged afterwards. Where nearly all rewards are equal, that spread is close to 0 and the few
    others would be huge in its units: `least_scale` bounds it.

    "asinh" (ours), in which x of any size is resolved: the smallest scale that matters, that of
    rewards without noise. With a known range of clean rewards, its midpoint and half its width,
    however far noise takes rewards. Without: the median, and half of `low_difference` of the
    rewards seen, at least `least_scale`, averaged in the same way.
    """
    known = observed.range if kind == "affine" else observed.clean_range
    if known is not None:
        low, high = known
        shift, scale = (low + high) / 2, (high - low) / 2
    else:
        low, shift, high = np.quantile(observed.rewards, [0.1, 0.5, 0.9])
        width = high - low if kind == "affine" else low_difference(observed.rewards)
        scale = max(width / 2, observed.least_scale)
        if not observed.first:
            shift = (1 - _MOMENTUM) * controls["value_shift"] + _MOMENTUM * shift
            scale = (1 - _MOMENTUM) * controls["value_scale"] + _MOMENTUM * scale
    return {"value_shift": float(shift), "value_scale": float(scale)}


def low_difference(rewards: np.ndarray) -> float:
    """The 10 % quantile of |r_i - r_j| over pairs of unequal rewards, 0 where all are equal; ours.

    Noise of many sizes adds large differences, and few small ones, so that a low quantile stays
    near the differences of the rewards with little noise. Of more than 1024 rewards, as many evenly
    spaced ones in their order are compared.
    """
    ordered = np.sort(np.asarray(rewards, np.float64))
    if len(ordered) > _COMPARED:
        ordered = ordered[np.linspace(0, len(ordered) - 1, _COMPARED).round().astype(int)]
    differences = np.abs(ordered[:, None] - ordered[None, :])
    differences = differences[differences > 0.0]
    return float(np.quantile(differences, 0.1)) if len(differences) else 0.0
