"""Advantage estimators: GAE over masked sequences, and critic-free baselines over groups.

Index convention (dfpo_jax.types): `values[:, i]` belongs to the state before token i and
`rewards[:, i]` follows token i. No function here stops gradients; the losses that consume
advantages and returns do.
"""

import chex
import jax
import jax.numpy as jnp

from dfpo_jax.ops.checks import check, check_positive, check_unit_interval
from dfpo_jax.ops.masking import as_float
from dfpo_jax.types import Array

GROUP_EPS = 1e-6


def gae(
    rewards: Array,
    values: Array,
    mask: Array,
    *,
    discount: float = 1.0,
    lambda_: Array | float = 0.95,
    final_values: Array | None = None,
) -> tuple[Array, Array]:
    """Generalized advantage estimation that steps over masked gaps.

    With i+ the next valid token after the valid token i,
      delta_i = r_i + discount * v_{i+} - v_i
      A_i     = delta_i + discount * lambda * A_{i+},      returns_i = A_i + v_i.
    After the last valid token v is `final_values` and A is 0. Masked tokens inside a response (a
    tool's or a user's turn) are skipped as if they had been cut out: they neither discount nor
    decay, and their rewards and values are ignored.

    Source: Schulman et al. 2016, arXiv 1506.02438, eq. 16; the rule for gaps is ours.

    Args:
      rewards: [B, T], in reward units.
      values: [B, T], same units.
      mask: [B, T], 1 on response tokens.
      discount: factor per valid token, in [0, 1].
      lambda_: in [0, 1], one number, or [B] with one per sequence.
      final_values: [B] value of the state after the last valid token; None means 0 (terminal).

    Returns:
      ([B, T] advantages, [B, T] returns), both 0 outside the mask.

    Raises:
      ValueError: if `discount` or `lambda_` is a Python number outside [0, 1].
      AssertionError: if shapes do not match.
    """
    chex.assert_rank([rewards, values, mask, lambda_], [2, 2, 2, {0, 1}])
    chex.assert_equal_shape([rewards, values, mask])
    check_unit_interval("discount", discount)
    check_unit_interval("lambda_", lambda_)
    valid = jnp.asarray(mask).astype(bool)
    rewards, values = (jnp.where(valid, x, 0) for x in (as_float(rewards), as_float(values)))
    batch = rewards.shape[0]
    if jnp.ndim(lambda_) == 1:
        chex.assert_shape(lambda_, (batch,))
    decay = discount * jnp.broadcast_to(jnp.asarray(lambda_, values.dtype), (batch,))
    start = jnp.zeros((batch,), values.dtype)
    if final_values is None:
        final_values = start
    chex.assert_shape(final_values, (batch,))

    def step(carry, inputs):
        next_value, next_advantage = carry
        reward, value, is_valid = inputs
        advantage = reward + discount * next_value - value + decay * next_advantage
        carry = (
            jnp.where(is_valid, value, next_value),
            jnp.where(is_valid, advantage, next_advantage),
        )
        return carry, jnp.where(is_valid, advantage, 0)

    carry = (jnp.asarray(final_values, values.dtype), start)
    _, advantages = jax.lax.scan(step, carry, (rewards.T, values.T, valid.T), reverse=True)
    advantages = advantages.T
    return advantages, advantages + values


def length_adaptive_lambda(lengths: Array, alpha: float = 0.05) -> Array:
    """GAE lambda that grows with the response: `max(0, 1 - 1 / (alpha * length))`.

    The sum of the weights lambda^k, 1 / (1 - lambda), is then proportional to the length.
    Source: VAPO, Yue et al. 2025, arXiv 2504.05118, section 4.

    Args:
      lengths: [...] valid tokens per response.
      alpha: positive; the share of the response that credit reaches back over.

    Returns:
      [...] float32 in [0, 1); 0 for an empty response.

    Raises:
      ValueError: if `alpha` is not positive.
    """
    check_positive("alpha", alpha)
    lengths = as_float(lengths)
    lambda_ = 1 - 1 / (alpha * jnp.maximum(lengths, 1))
    return jnp.where(lengths > 0, jnp.maximum(lambda_, 0), 0)


def _centred_groups(rewards: Array, group_size: int) -> Array:
    """Rewards minus their group's mean, [B / group_size, group_size].

    The group's first reward is subtracted before the mean, so that all members of a tied group are
    exactly 0. Otherwise normalisation would scale the rounding error of the mean to an advantage.
    """
    chex.assert_rank(rewards, 1)
    batch = rewards.shape[0]
    divides = group_size >= 2 and batch % group_size == 0
    check(divides, "group_size", group_size, f"at least 2, and a divisor of the batch, {batch}")
    groups = as_float(rewards).reshape(-1, group_size)
    groups = groups - groups[:, :1]
    return groups - jnp.mean(groups, axis=1, keepdims=True)


def group_relative(rewards: Array, group_size: int, *, normalize: bool = True) -> Array:
    """Reward relative to the other answers to the same prompt.

    `A = (r - mean) / (std + 1e-6)` over the group, std with ddof 1; `r - mean` if not normalized.
    Sources: GRPO (normalized), Shao et al. 2024, arXiv 2402.03300, section 4.1; Dr. GRPO (not
    normalized), Liu et al. 2025, arXiv 2503.20783, section 3.

    Args:
      rewards: [B]; rows of a group are consecutive.
      group_size: answers per prompt; at least 2, divides B (static).
      normalize: whether to divide by the standard deviation (static).

    Returns:
      [B] float32 or wider; exactly 0 in a group whose rewards are all equal.

    Raises:
      ValueError: if `group_size` is below 2 or does not divide B.
      AssertionError: if `rewards` is not a vector.
    """
    centred = _centred_groups(rewards, group_size)
    relative = centred.reshape(-1)
    return relative / (_deviation(centred) + GROUP_EPS) if normalize else relative


def min_variance(
    rewards: Array,
    log_weights: Array,
    squared_norms: Array,
    group_size: int,
    *,
    normalize: bool = False,
) -> Array:
    """Reward minus the baseline of least variance under importance weights.

    `b = sum_i w_i^2 ||g_i||^2 r_i / sum_i w_i^2 ||g_i||^2` over the group, with `w = exp(log w)`.
    Source: the off-policy optimal baseline of VCPO, arXiv 2602.17616.

    Args:
      rewards: [B]; rows of a group are consecutive.
      log_weights: [B] log pi(y) - log mu(y) (nats), as large as they may be: only their
        differences within a group count.
      squared_norms: [B] ||grad log pi(y)||^2; in a group where all are 0, each counts the same.
      group_size: at least 2, divides B (static).
      normalize: whether to divide by the standard deviation of the group's rewards plus 1e-6.

    Returns:
      [B] float32 or wider; exactly 0 in a group whose rewards are all equal.

    Raises:
      ValueError: if `group_size` is below 2 or does not divide B.
      AssertionError: if shapes differ or are no vectors.
    """
    chex.assert_rank([rewards, log_weights, squared_norms], 1)
    chex.assert_equal_shape([rewards, log_weights, squared_norms])
    centred = _centred_groups(rewards, group_size)  # any shift of the rewards shifts the baseline
    log_weights, norms = (as_float(x).reshape(centred.shape) for x in (log_weights, squared_norms))
    share = jnp.exp(2 * (log_weights - jnp.max(log_weights, axis=1, keepdims=True))) * norms
    total = jnp.sum(share, axis=1, keepdims=True)
    share = jnp.where(total > 0, share / jnp.where(total > 0, total, 1), 1 / group_size)
    relative = centred - jnp.sum(share * centred, axis=1, keepdims=True)
    relative = relative.reshape(-1)
    return relative / (_deviation(centred) + GROUP_EPS) if normalize else relative


def _deviation(centred: Array) -> Array:
    """[G, n] rewards less their group's mean -> [G * n] deviation of the group, 1 where tied."""
    variance = jnp.sum(jnp.square(centred), axis=1, keepdims=True) / (centred.shape[1] - 1)
    # The root of 0 has an infinite gradient. A tied group is 0 whatever divides it.
    deviation = jnp.sqrt(jnp.where(variance == 0, 1, variance))
    return jnp.broadcast_to(deviation, centred.shape).reshape(-1)


def rloo(rewards: Array, group_size: int) -> Array:
    """Reward minus the mean reward of the *other* answers to the same prompt.

    `A_k = r_k - mean_{j != k} r_j = (r_k - mean) * n / (n - 1)`.
    Source: REINFORCE leave-one-out, Ahmadian et al. 2024, arXiv 2402.14740.

    Args:
      rewards: [B]; rows of a group are consecutive.
      group_size: answers per prompt, n; at least 2, divides B (static).

    Returns:
      [B] float32 or wider, in reward units.

    Raises:
      ValueError: if `group_size` is below 2 or does not divide B.
      AssertionError: if `rewards` is not a vector.
    """
    centred = _centred_groups(rewards, group_size)
    return (centred * (group_size / (group_size - 1))).reshape(-1)
