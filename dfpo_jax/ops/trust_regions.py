"""Trust regions by the divergence of a token's distribution from the sampler's (DPPO).

Everything here is unreduced, [B, T], takes no mask and carries no gradient.
"""

import chex
import jax
import jax.numpy as jnp

from dfpo_jax.ops.checks import check, check_choice
from dfpo_jax.ops.masking import as_float
from dfpo_jax.types import Array

DIVERGENCES = ("tv", "kl")
COMPLEMENT_EPS = 1e-8
LEAST_MASS = 1e-12


def _stopped(*arrays: Array) -> tuple[Array, ...]:
    return tuple(jax.lax.stop_gradient(as_float(x)) for x in arrays)


def binary_divergence(
    log_probs: Array, behaviour_log_probs: Array, *, divergence: str = "tv"
) -> Array:
    """Divergence of the policy from the sampler, of "this token or another one".

    With pi and mu the probabilities of the sampled token,
      "tv": |mu - pi|
      "kl": mu log(mu / pi) + (1 - mu) log((1 - mu) / (1 - pi)), 1e-8 added to both complements.
    Both bound the divergence over the whole vocabulary from below.
    Source: DPPO, arXiv 2602.04879, section 5.

    Args:
      log_probs: [B, T] of the policy being trained, nats.
      behaviour_log_probs: [B, T] that the sampler reported, nats.
      divergence: "tv" or "kl".

    Returns:
      [B, T] float32 or wider, without gradient; "tv" in [0, 1], "kl" in nats.

    Raises:
      ValueError: if `divergence` is neither.
      AssertionError: if shapes differ.
    """
    chex.assert_equal_shape([log_probs, behaviour_log_probs])
    check_choice("divergence", divergence, DIVERGENCES)
    new, sampler = _stopped(log_probs, behaviour_log_probs)
    if divergence == "tv":
        return jnp.abs(jnp.exp(sampler) - jnp.exp(new))
    # expm1 keeps the digits of a complement near 0; rounding may leave a log-probability above 0.
    rest, new_rest = (jnp.maximum(-jnp.expm1(x), 0) + COMPLEMENT_EPS for x in (sampler, new))
    return jnp.exp(sampler) * (sampler - new) + rest * (jnp.log(rest) - jnp.log(new_rest))


def top_k_divergence(
    log_probs: Array,
    behaviour_log_probs: Array,
    top_log_probs: Array,
    behaviour_top_log_probs: Array,
    included: Array,
    *,
    divergence: str = "tv",
) -> Array:
    """Divergence of the policy from the sampler over the sampler's K likeliest tokens.

    The tokens are those K, the sampled one where it is not among them, and one that stands for all
    others, with the mass that is left (at least 1e-12):
      "tv": sum |mu - pi| / 2        "kl": sum mu log(mu / pi).
    Both bound the divergence over the whole vocabulary from below, more tightly than
    `binary_divergence`.
    Source: DPPO, arXiv 2602.04879, section 5 (K = 20).

    Args:
      log_probs: [B, T] of the sampled token under the policy being trained, nats.
      behaviour_log_probs: [B, T], the same under the sampler.
      top_log_probs: [B, T, K] of the sampler's K likeliest tokens, under the policy.
      behaviour_top_log_probs: [B, T, K], the same under the sampler.
      included: [B, T] bool, whether the sampled token is one of the K.
      divergence: "tv" or "kl".

    Returns:
      [B, T] float32 or wider, without gradient; "tv" in [0, 1], "kl" in nats.

    Raises:
      ValueError: if `divergence` is neither.
      AssertionError: if shapes do not match.
    """
    chex.assert_rank([top_log_probs, log_probs], [3, 2])
    chex.assert_equal_shape([log_probs, behaviour_log_probs, included])
    chex.assert_equal_shape([top_log_probs, behaviour_top_log_probs])
    chex.assert_equal_shape_prefix([top_log_probs, log_probs], 2)
    check_choice("divergence", divergence, DIVERGENCES)
    there = jnp.asarray(included).astype(bool)

    def masses(chosen: Array, top: Array) -> Array:
        chosen = jnp.where(there, 0, jnp.exp(chosen))[..., None]
        known = jnp.concatenate([jnp.exp(top), chosen], axis=-1)
        rest = jnp.maximum(1 - jnp.sum(known, axis=-1, keepdims=True), LEAST_MASS)
        return jnp.concatenate([known, rest], axis=-1)

    new = masses(*_stopped(log_probs, top_log_probs))
    sampler = masses(*_stopped(behaviour_log_probs, behaviour_top_log_probs))
    if divergence == "tv":
        return 0.5 * jnp.sum(jnp.abs(sampler - new), axis=-1)
    # A token of no mass under the sampler adds nothing, whatever the policy gives it.
    log_ratio = jnp.log(jnp.maximum(sampler, LEAST_MASS)) - jnp.log(jnp.maximum(new, LEAST_MASS))
    return jnp.sum(sampler * log_ratio, axis=-1)


def trust_region_mask(
    log_probs: Array,
    behaviour_log_probs: Array,
    advantages: Array,
    divergences: Array,
    *,
    threshold: float,
) -> Array:
    """0 on tokens that have left the trust region and would go on; 1 on all others.

      0 where D > threshold, and A > 0 and pi > mu, or A < 0 and pi < mu.
    Source: DPPO, arXiv 2602.04879, section 5.

    Args:
      log_probs: [B, T] of the policy being trained, log pi.
      behaviour_log_probs: [B, T] that the sampler reported, log mu.
      advantages: [B, T].
      divergences: [B, T], D, of any kind.
      threshold: at least 0, in the units of D.

    Returns:
      [B, T] float32, 0 or 1, without gradient.

    Raises:
      ValueError: if `threshold` is negative.
      AssertionError: if shapes differ.
    """
    chex.assert_equal_shape([log_probs, behaviour_log_probs, advantages, divergences])
    check(threshold >= 0, "threshold", threshold, "at least 0")
    new, sampler, advantages, divergences = _stopped(
        log_probs, behaviour_log_probs, advantages, divergences
    )
    away = ((advantages > 0) & (new > sampler)) | ((advantages < 0) & (new < sampler))
    return 1 - (away & (divergences > threshold)).astype(jnp.float32)


def divergence_mask(
    log_probs: Array,
    behaviour_log_probs: Array,
    advantages: Array,
    *,
    threshold: float,
    divergence: str = "tv",
) -> Array:
    """DPPO's mask by the binary divergence: `trust_region_mask` of `binary_divergence`.

    Source: DPPO, arXiv 2602.04879, section 5, with thresholds of 0.15 ("tv") and 0.05 ("kl").

    Args:
      log_probs: [B, T] of the policy being trained, nats.
      behaviour_log_probs: [B, T] that the sampler reported, nats.
      advantages: [B, T].
      threshold: at least 0; a probability for "tv", nats for "kl".
      divergence: "tv" or "kl".

    Returns:
      [B, T] float32, 0 or 1, without gradient.

    Raises:
      ValueError: if `threshold` is negative or `divergence` is neither.
      AssertionError: if shapes differ.
    """
    found = binary_divergence(log_probs, behaviour_log_probs, divergence=divergence)
    return trust_region_mask(log_probs, behaviour_log_probs, advantages, found, threshold=threshold)
