"""Distributional return targets: mixtures of n-step return laws, and averages of their quantiles.

Index convention of `dfpo_jax.types`: reward `r[i]` follows token i; the state before token i has
index i. "Next" always means the next *valid* token: masked positions inside a response are skipped
as if they had been cut out.
"""

import chex
import jax
import jax.numpy as jnp

from dfpo_jax.ops.checks import check_unit_interval

Array = chex.Array


def _per_row(name: str, value: Array | float, batch: int, dtype) -> Array:
    """A scalar or [B] option as [B, 1]."""
    check_unit_interval(name, value)
    return jnp.broadcast_to(jnp.asarray(value, dtype), (batch,))[:, None]


def _time_major(*arrays: Array) -> tuple[Array, ...]:
    return tuple(jnp.swapaxes(x, 0, 1) for x in arrays)


def _check_shapes(rewards: Array, samples: Array, mask: Array) -> None:
    chex.assert_rank([rewards, samples, mask], [2, 3, 2])
    chex.assert_equal_shape([rewards, mask])
    chex.assert_equal_shape_prefix([rewards, samples], 2)
    chex.assert_type([rewards, samples], float)


def lambda_mixture(
    key: Array,
    rewards: Array,
    bootstrap: Array,
    mask: Array,
    *,
    discount: float = 1.0,
    lambda_: Array | float = 0.95,
    truncated: Array | None = None,
) -> Array:
    """Samples of the lambda-mixture of n-step return distributions.

    For a valid token i, the next valid token j, and B ~ Bernoulli(lambda) drawn per (row, token,
    sample),

        y_i = r_i + discount * (B ? y_j : bootstrap_i),

    and y_i = r_i at the last valid token, or r_i + discount * bootstrap_i in rows that `truncated`
    marks. The mean over the draws is the ordinary lambda-return. Sample replacement, SR(lambda):
    GMAC, arXiv 2105.11366.

    Args:
      key: PRNG key of the Bernoulli draws.
      rewards: [B, T] float; ignored where mask is 0.
      bootstrap: [B, T, S] samples of the return from the state after token i, which is the state
        before the *next valid* token: before a gap in the mask, pass samples from the state after
        the gap. Ignored where mask is 0, and at the last valid token except in truncated rows.
        Tokens may share noise, which affects only the joint law of the targets.
      mask: [B, T], 1 on response tokens; holes and empty rows are allowed.
      discount: in [0, 1].
      lambda_: in [0, 1], a float or one per row [B].
      truncated: [B] bool or 0/1, rows whose return after the last valid token is bootstrapped;
        None: no row.

    Returns:
      [B, T, S], without gradient. A gap has the target of the next valid token. Targets are 0
      after the last valid token and in empty rows.

    Raises:
      ValueError: `discount` or `lambda_` is a number outside [0, 1].
    """
    _check_shapes(rewards, bootstrap, mask)
    check_unit_interval("discount", discount)
    batch, _, samples = bootstrap.shape
    dtype = bootstrap.dtype
    lambda_row = _per_row("lambda_", lambda_, batch, dtype)[..., None]
    take_target = jax.random.uniform(key, bootstrap.shape, dtype) < lambda_row
    if truncated is None:
        truncated = jnp.zeros(batch, bool)
    chex.assert_shape(truncated, (batch,))
    cut = jnp.asarray(truncated).astype(bool)[:, None]

    def step(carry, inputs):
        target, has_next = carry
        reward, after, take, valid = inputs
        final = jnp.where(cut, after, jnp.zeros_like(after))
        future = jnp.where(has_next, jnp.where(take, target, after), final)
        valid = valid[:, None]
        target = jnp.where(valid, reward[:, None] + discount * future, target)
        return (target, has_next | valid), target

    valid = jnp.asarray(mask).astype(bool)
    inputs = _time_major(rewards.astype(dtype), bootstrap, take_target, valid)
    init = (jnp.zeros((batch, samples), dtype), jnp.zeros((batch, 1), bool))
    _, targets = jax.lax.scan(step, init, inputs, reverse=True)
    return jax.lax.stop_gradient(jnp.swapaxes(targets, 0, 1))


def lambda_average(
    rewards: Array,
    values: Array,
    mask: Array,
    *,
    discount: float = 1.0,
    lambda_: Array | float = 0.95,
    final_values: Array | None = None,
) -> Array:
    """Lambda-return of each quantile: generalised advantage plus value, per quantile.

    For a valid token i and the next valid token j (after the last one, value and target are
    `final_values`),

        y_i = r_i + discount * ((1 - lambda) values_j + lambda y_j).

    It averages quantile functions instead of mixing distributions, so the spread of independent
    outcomes shrinks at every bootstrap; with `lambda_mixture` it does not. The mean over quantiles
    equals the lambda-return of the mean values. The targets of DVPO, arXiv 2512.03847: quantiles
    plus `distributional_gae`.

    Args:
      rewards: [B, T] float; ignored where mask is 0.
      values: [B, T, Q] quantiles of the return from the state before token i; ignored where mask
        is 0.
      mask: [B, T], 1 on response tokens; holes and empty rows are allowed.
      discount: in [0, 1].
      lambda_: in [0, 1], a float or one per row [B].
      final_values: [B, Q] quantiles after the last valid token; None: 0.

    Returns:
      [B, T, Q], without gradient. A gap has the target of the next valid token. Targets are 0
      after the last valid token and in empty rows.

    Raises:
      ValueError: `discount` or `lambda_` is a number outside [0, 1].
    """
    _check_shapes(rewards, values, mask)
    check_unit_interval("discount", discount)
    batch, _, quantiles = values.shape
    dtype = values.dtype
    lambda_row = _per_row("lambda_", lambda_, batch, dtype)
    if final_values is None:
        final_values = jnp.zeros((batch, quantiles), dtype)
    chex.assert_shape(final_values, (batch, quantiles))

    def step(carry, inputs):
        target, next_value, has_next = carry
        reward, value, valid = inputs
        valid = valid[:, None]
        future = (1.0 - lambda_row) * next_value + lambda_row * target
        target = jnp.where(valid, reward[:, None] + discount * future, target)
        next_value = jnp.where(valid, value, next_value)
        has_next = has_next | valid
        return (target, next_value, has_next), jnp.where(has_next, target, jnp.zeros_like(target))

    final = jnp.asarray(final_values, dtype)
    inputs = _time_major(rewards.astype(dtype), values, jnp.asarray(mask).astype(bool))
    init = (final, final, jnp.zeros((batch, 1), bool))
    _, targets = jax.lax.scan(step, init, inputs, reverse=True)
    return jax.lax.stop_gradient(jnp.swapaxes(targets, 0, 1))


def distributional_gae(
    rewards: Array,
    quantiles: Array,
    mask: Array,
    *,
    discount: float = 1.0,
    lambda_: Array | float = 0.95,
    final_values: Array | None = None,
) -> Array:
    """Advantages A of generalised advantage estimation for each quantile by itself.

    For a valid token i, the next valid token i+ and quantile j,

        delta_i^j = r_i + discount * q_{i+}^j - q_i^j
        A_i^j     = delta_i^j + discount * lambda * A_{i+}^j.

    After the last valid token q is `final_values` and A is 0. The mean over j is the scalar
    advantage. The targets of the quantiles are q + A, which `lambda_average` gives without the
    subtraction. DVPO, arXiv 2512.03847, eq. 2, from third-party code; the paper was not read.

    Args:
      rewards: [B, T] float; ignored where mask is 0.
      quantiles: [B, T, Q] of the return from the state before token i; ignored where mask is 0.
      mask: [B, T], 1 on response tokens; holes and empty rows are allowed.
      discount: in [0, 1].
      lambda_: in [0, 1], a float or one per row [B].
      final_values: [B, Q] quantiles after the last valid token; None: 0.

    Returns:
      [B, T, Q] advantages, without gradient, 0 outside the mask.

    Raises:
      ValueError: `discount` or `lambda_` is a number outside [0, 1].
      AssertionError: shapes do not match.
    """
    targets = lambda_average(
        rewards, quantiles, mask, discount=discount, lambda_=lambda_, final_values=final_values
    )
    valid = jnp.asarray(mask).astype(bool)[..., None]
    return jax.lax.stop_gradient(jnp.where(valid, targets - quantiles, 0))
