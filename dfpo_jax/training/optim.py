"""Optimizers: one for the policy, one for the critic."""

from collections.abc import Callable

import optax

from dfpo_jax.training.config import OptimizerConfig


def make_schedule(config: OptimizerConfig, total_steps: int) -> Callable:
    """Learning rate as a function of the update count.

    Args:
      config: peak, warm-up and decay.
      total_steps: updates of the whole run; the decay ends there.
    """
    peak = config.learning_rate
    decay_steps = max(total_steps - config.warmup_steps, 1)
    if config.schedule == "constant":
        after = optax.constant_schedule(peak)
    elif config.schedule == "linear":
        after = optax.linear_schedule(peak, peak * config.final_fraction, decay_steps)
    else:
        after = optax.cosine_decay_schedule(peak, decay_steps, config.final_fraction)
    if config.warmup_steps == 0:
        return after
    rise = optax.linear_schedule(0.0, peak, config.warmup_steps)
    return optax.join_schedules([rise, after], [config.warmup_steps])


def make_optimizer(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformation:
    """Global-norm clipping, then AdamW with the schedule."""
    adamw = optax.adamw(
        make_schedule(config, total_steps),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
    )
    if config.clip_norm == 0.0:
        return adamw
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)
