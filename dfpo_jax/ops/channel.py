"""A verifier as a noisy channel, and the inverse of it.

A verifier with rates rho0 (a wrong response is rewarded as right) and rho1 (a right one as wrong)
gives the reward 1 with probability `rho0 + J q` to a response that is right with probability q.
J = 1 - rho0 - rho1 is above 0 for a verifier that is better than chance.
"""

import numbers

import chex
import jax
import jax.numpy as jnp
import numpy as np

from dfpo_jax.ops.checks import check, check_choice
from dfpo_jax.ops.masking import as_float
from dfpo_jax.types import Array

CORRECTIONS = ("backward", "forward")


def channel_inverse(
    probabilities: Array,
    *,
    false_positive: Array | float,
    false_negative: Array | float,
) -> Array:
    """Probability of a right response, from that of the reward 1: `clip((p - rho0) / J, 0, 1)`.

    The gradient is 1 / J inside the clip and 0 outside. Source: the channel's definition, Cai et
    al. 2025, arXiv 2510.00915; its use on a predicted probability is ours.

    Args:
      probabilities: [...] in [0, 1], of the observed reward 1.
      false_positive: rho0 in [0, 1], a number, or an array that broadcasts to `probabilities`.
      false_negative: rho1, likewise; rho0 + rho1 < 1.

    Returns:
      [...] float32 or wider, in [0, 1].

    Raises:
      ValueError: a rate outside [0, 1], or rates that sum to 1 or more; of arrays on a device
        nothing is checked.
      AssertionError: a rate does not broadcast to `probabilities`.
    """
    probabilities = as_float(probabilities)
    wrong, informed = _channel(probabilities, false_positive, false_negative)
    return jnp.clip((probabilities - wrong) / informed, 0, 1)


def corrected_rewards(
    rewards: Array,
    *,
    false_positive: Array | float,
    false_negative: Array | float,
    kind: str = "backward",
) -> Array:
    """Rewards whose mean over the channel's errors is that of clean ones.

      "backward": (r - rho0) / J, unbiased: its mean is 1 for a right response and 0 for a wrong one
      "forward":  r - (1 - rho1), that is rho1 for an observed 1 and rho1 - 1 for an observed 0; its
                  mean is 0 for a right response and -J for a wrong one. It does not read rho0.

    Both are increasing affine functions of r. With one pair of rates for the whole batch an
    estimator that centres and normalises its advantages cancels them exactly.
    Source: Cai et al. 2025, arXiv 2510.00915; that a centred estimator cancels them is ours.

    Args:
      rewards: [...] observed, 0 or 1; in between they count as a mixture of both.
      false_positive: rho0 in [0, 1], a number, or an array that broadcasts to `rewards`.
      false_negative: rho1, likewise; rho0 + rho1 < 1.
      kind: "backward" or "forward".

    Returns:
      [...] float32 or wider: in [-rho0 / J, (1 - rho0) / J], or in [rho1 - 1, rho1].

    Raises:
      ValueError: another kind, a rate outside [0, 1], or rates that sum to 1 or more; of arrays on
        a device nothing is checked.
      AssertionError: a rate does not broadcast to `rewards`.
    """
    check_choice("kind", kind, CORRECTIONS)
    rewards = as_float(rewards)
    wrong, informed = _channel(rewards, false_positive, false_negative)
    if kind == "backward":
        return (rewards - wrong) / informed
    return rewards - (informed + wrong)


def _channel(
    x: Array, false_positive: Array | float, false_negative: Array | float
) -> tuple[Array, Array]:
    """rho0 and J in the type of `x`, checked."""
    rates = {"false_positive": false_positive, "false_negative": false_negative}
    for name, rate in rates.items():
        if _is_known(rate):
            inside = bool(np.all((np.asarray(rate) >= 0) & (np.asarray(rate) <= 1)))
            check(inside, name, rate, "in [0, 1]")
        chex.assert_is_broadcastable(jnp.shape(rate), x.shape)
    if all(map(_is_known, rates.values())):
        total = np.asarray(false_positive) + np.asarray(false_negative)
        check(bool(np.all(total < 1)), "false_positive + false_negative", total, "below 1")
    wrong, missed = (jnp.asarray(rate, x.dtype) for rate in rates.values())
    return wrong, 1 - wrong - missed


def _is_known(rate: Array | float) -> bool:
    """Whether a rate lies on the host, so that it can be compared."""
    return isinstance(rate, numbers.Real | np.ndarray) and not isinstance(rate, jax.core.Tracer)
