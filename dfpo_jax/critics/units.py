"""The units in which a critic learns, beside those in which everything else is; ours.

Rewards, laws, returns and advantages are in value units x = (G - mu) / s. A critic that knows
quantiles may learn z = h(x) inside, as quantiles commute with an increasing map h.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from dfpo_jax import ops
from dfpo_jax.types import Array, Steps


class Units(NamedTuple):
    """A map h and its inverse, which a critic's `build` takes.

    What a critic predicts, its targets and its losses are in z = h(x). Whatever it gives to others
    is in x: `law`, `returns` and `heads`. Bootstraps enter the returns of a token as h^-1(Z), so
    that y = h(r + gamma h^-1(Z)). Targets that are averages are averaged in x and mapped
    afterwards.

    Attributes:
      to: x -> z, elementwise.
      back: z -> x.
      mean: (low, width) -> mean of x over z spread evenly from low to low + width.
      affine: whether h is the identity.
    """

    to: Callable[[Array], Array]
    back: Callable[[Array], Array]
    mean: Callable[[Array, Array | float], Array]
    affine: bool


AFFINE = Units(lambda x: x, lambda z: z, lambda low, width: low + 0.5 * width, True)
ASINH = Units(ops.asinh_units, ops.from_asinh_units, ops.mean_from_asinh_units, False)
UNITS = {"affine": AFFINE, "asinh": ASINH}


def same_law(units: Units, steps: Steps) -> Array:
    """[B, R] 1 on tokens whose two states have laws that a loss between them can relate in z.

    In affine units these are all tokens, as the state's return is r + gamma Z, whose flow is
    affine in that of Z. Under another h only equal returns give a relation of flows: a reward of 0
    and a discount of 1.
    """
    if units.affine:
        return jnp.ones_like(steps.mask)
    return jnp.where((steps.rewards == 0.0) & (steps.discount == 1.0), 1.0, 0.0)
