"""Estimators of the divergence from a reference policy, entropy, and the adaptive KL weight."""

import chex
import jax
import jax.numpy as jnp

from dfpo_jax.ops.checks import check_choice, check_positive
from dfpo_jax.ops.masking import as_float
from dfpo_jax.ops.policy_gradients import MAX_LOG_RATIO
from dfpo_jax.types import Array

KL_KINDS = ("k1", "k2", "k3")
MAX_KL_ERROR = 0.2


def kl_estimate(log_probs: Array, ref_log_probs: Array, kind: str = "k3") -> Array:
    """Per-token estimate of KL(policy || reference) from tokens drawn from the policy.

    With d = ref_log_probs - log_probs,
      "k1": -d               unbiased, may be negative; as a loss its expected gradient is 0
      "k2": d^2 / 2          biased value, unbiased gradient
      "k3": exp(d) - 1 - d   unbiased value, never negative; d is capped at 20, beyond which the
                             value is constant and has no gradient
    Source: J. Schulman, "Approximating KL divergence", 2020, joschu.net/blog/kl-approx.html.

    Args:
      log_probs: [B, T] of the policy, nats.
      ref_log_probs: [B, T] of the reference, nats; gradient stopped.
      kind: "k1", "k2" or "k3".

    Returns:
      [B, T] float32 or wider, nats.

    Raises:
      ValueError: if `kind` is not one of the three.
      AssertionError: if shapes differ.
    """
    chex.assert_equal_shape([log_probs, ref_log_probs])
    check_choice("kind", kind, KL_KINDS)
    difference = jax.lax.stop_gradient(as_float(ref_log_probs)) - as_float(log_probs)
    if kind == "k1":
        return -difference
    if kind == "k2":
        return 0.5 * jnp.square(difference)
    difference = jnp.minimum(difference, MAX_LOG_RATIO)
    return jnp.expm1(difference) - difference


def entropy(logits: Array) -> Array:
    """Entropy of the token distribution, `-sum_v p_v log p_v`.

    Logits of -inf (excluded tokens) contribute 0 to the value and to the gradient.

    Args:
      logits: [B, T, V] (any leading shape works); at least one finite logit per position.

    Returns:
      [B, T] float32 or wider, nats.

    Raises:
      AssertionError: if `logits` is a scalar.
    """
    chex.assert_rank(logits, set(range(1, 8)))
    log_p = jax.nn.log_softmax(as_float(logits), axis=-1)
    finite_log_p = jnp.where(jnp.isneginf(log_p), 0, log_p)
    return -jnp.sum(jnp.exp(log_p) * finite_log_p, axis=-1)


def adaptive_kl_update(
    coefficient: Array,
    observed_kl: Array,
    *,
    target: float,
    horizon: float,
    num_tokens_or_steps: Array | float,
) -> Array:
    """Next weight of the KL penalty, by a proportional controller.

      error = clip(observed_kl / target - 1, -0.2, 0.2)
      coefficient * (1 + error * num_tokens_or_steps / horizon)
    The share num / horizon is capped at 1, so that one update changes the weight by at most a fifth
    (ours; with num <= horizon this is the paper's rule).
    Source: Ziegler et al. 2019, arXiv 1909.08593, section 2.2.

    Args:
      coefficient: [] current weight.
      observed_kl: [] measured divergence, in the units of `target`.
      target: positive.
      horizon: positive, in the units of `num_tokens_or_steps`.
      num_tokens_or_steps: tokens or steps since the last update, not negative.

    Returns:
      [] float32 or wider, without gradient.

    Raises:
      ValueError: if `target` or `horizon` is not positive.
      AssertionError: if `coefficient` or `observed_kl` is not a scalar.
    """
    chex.assert_rank([coefficient, observed_kl], 0)
    check_positive("target", target)
    check_positive("horizon", horizon)
    error = jnp.clip(as_float(observed_kl) / target - 1, -MAX_KL_ERROR, MAX_KL_ERROR)
    share = jnp.minimum(as_float(num_tokens_or_steps) / horizon, 1)
    return jax.lax.stop_gradient(as_float(coefficient) * (1 + error * share))
