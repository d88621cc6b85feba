"""Optimizers: one for the policy, one for the critic."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from dfpo_jax.training.config import OptimizerConfig
from dfpo_jax.training.step_size import scale_by_effective_samples
from dfpo_jax.types import ArrayTree


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


def make_optimizer(
    config: OptimizerConfig, total_steps: int
) -> optax.GradientTransformationExtraArgs:
    """Global-norm clipping, AdamW or Adafactor with the schedule, step scaling; in float32.

    Extra arguments reach the transformations that ask for them (`optax.with_extra_args_support`).
    Parameters of another type get float32 updates and moments (but for `moment_dtype`): in
    bfloat16 a second moment would keep its value for ever, as .999 of it rounds to itself.
    """
    build = {"adamw": _adamw, "adafactor": _adafactor}[config.name]
    optimizer = build(config, make_schedule(config, total_steps))
    if config.clip_norm > 0.0:
        optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)

    if config.step_scaling != "none":
        scaled = scale_by_effective_samples(config.step_scaling, config.step_base)
        optimizer = optax.chain(optimizer, scaled)
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params):
        return optimizer.init(_float32(params))

    def update(updates, state, params, **extra):
        return optimizer.update(_float32(updates), state, _float32(params), **extra)

    return optax.GradientTransformationExtraArgs(init, update)


def _float32(tree: ArrayTree) -> ArrayTree:
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def _adamw(config: OptimizerConfig, schedule: Callable) -> optax.GradientTransformation:
    return optax.adamw(
        schedule,
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mu_dtype=config.moment_dtype,
    )


def _adafactor(config: OptimizerConfig, schedule: Callable) -> optax.GradientTransformation:
    """Adafactor with AdamW's units: steps of about the learning rate, decay times the rate.

    Means run over the two longest axes of an array (where both have 128 entries or more); the
    update of one array is clipped to root mean square 1.
    """
    factored = optax.scale_by_factored_rms()
    # The means have other axes than the parameters, so they take no logical names from them; they
    # are small, and a whole copy lies on every device.
    factored = factored._replace(init=lambda params, init=factored.init: init(nn.unbox(params)))
    return optax.chain(
        factored,
        optax.clip_by_block_rms(1.0),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(schedule),
    )
