"""Value units z = (G - mu) / sigma, which follow the rewards of a run (algorithm section 1)."""

import numpy as np

from dfpo_jax.algorithms.interface import Controls, Observed

_MOMENTUM = 0.05


def value_units(controls: Controls, observed: Observed) -> dict[str, float]:
    """The units of an iteration, as the controls "value_shift" (mu) and "value_scale" (sigma).

    With a known range of rewards: its midpoint and half its width. Without: the median and half the
    10-90 % spread of the rewards seen, taken over at the first iteration and slowly averaged
    afterwards. Where nearly all rewards are equal, that spread is close to 0 and the few others
    would be huge in its units: `least_scale` bounds it.
    """
    if observed.range is not None:
        low, high = observed.range
        shift, scale = (low + high) / 2, (high - low) / 2
    else:
        low, shift, high = np.quantile(observed.rewards, [0.1, 0.5, 0.9])
        scale = max((high - low) / 2, observed.least_scale)
        if not observed.first:
            shift = (1 - _MOMENTUM) * controls["value_shift"] + _MOMENTUM * shift
            scale = (1 - _MOMENTUM) * controls["value_scale"] + _MOMENTUM * scale
    return {"value_shift": float(shift), "value_scale": float(scale)}
