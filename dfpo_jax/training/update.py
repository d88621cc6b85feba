"""From a batch to new parameters: minibatches, exact micro-batch accumulation, finite checks."""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from dfpo_jax.algorithms.interface import Algorithm, Batch, Context
from dfpo_jax.metric import Metric
from dfpo_jax.models import lora
from dfpo_jax.models.transformer import Transformer
from dfpo_jax.training.gradients import (
    STATISTICS,
    accumulate_gradients,
    join_trained,
    over_devices,
    split_trained,
)
from dfpo_jax.types import Array, ArrayTree, TrainState, Unfinished

# Folded into an iteration's key beside the update numbers 0, 1, ...
ORDER, PREPARE = 2**31, 2**31 + 1

_NORM = "`sqrt(sum g^2)` before clipping, mean over the iteration's finite updates"
METRICS = (
    Metric(
        "policy/gradient_norm",
        "Norm of the gradient of the whole objective by the policy's parameters that train. With "
        "`critic.trunk=shared` the critic's loss is part of it.",
        formula=_NORM,
        healthy="Finite and of one size over the run; 0 while `critic.warmup` lasts, but for a "
        "shared trunk, whose gradient is then not used. Above `policy_optimizer.clip_norm` the "
        "gradient is scaled down to it.",
        advice="Spikes come from outliers: bound the rewards (`rewards.clip.bound`), use "
        "`advantage.name=rank`, or lower `policy_optimizer.learning_rate`. At 0 after the warm-up "
        "no advantage is left: read `rollout/zero_variance_groups`.",
        when="where the policy trains",
    ),
    Metric(
        "critic/gradient_norm",
        "Norm of the gradient by the parameters of the critic: its head, its own trunk, and what "
        "`critic.confidence` adds.",
        formula=_NORM,
        healthy="Finite and not growing. Above `critic_optimizer.clip_norm` the gradient is scaled "
        "down to it.",
        advice="Where it grows, lower `critic_optimizer.learning_rate`, or bound the targets: "
        "`critic.units=asinh`, `critic.flow.value_bound`, `rewards.clip.bound`.",
        when="where a critic trains",
    ),
    Metric(
        "objective/gradient_norm",
        "Norm of the gradient by a network that the policy's objective has for itself, such as log "
        "Z of `flowrl`.",
        formula=_NORM,
        healthy="Finite and not growing.",
        advice="Where it grows, lower `policy_optimizer.learning_rate`, which is that of this "
        "network too.",
        when="where the objective has a network",
    ),
)

Optimizers = Mapping[str, optax.GradientTransformation]


class Schedule(NamedTuple):
    """How an iteration's rows become updates.

    Attributes:
      epochs: passes over them.
      minibatches: updates per pass.
      microbatches: pieces of as many rows per update.
      microbatch_tokens: 0, or the size of pieces of packed rows, as many as a minibatch fills.
    """

    epochs: int = 1
    minibatches: int = 1
    microbatches: int = 1
    microbatch_tokens: int = 0


def init_state(
    algorithm: Algorithm,
    optimizers: Optimizers,
    policy_params: ArrayTree,
    key: Array,
    behaviour_lag: int = 0,
    unfinished: Unfinished | None = None,
) -> TrainState:
    """A fresh train state around given policy parameters; pure, boxes pass through.

    Args:
      algorithm: gives the parameters and the first controls.
      optimizers: by network; a network without one stays as it is.
      policy_params: starting point; also the KL reference where one is kept.
      key: typed PRNG key of the run.
      behaviour_lag: iterations by which the sampling policy is behind.
      unfinished: responses that the first iteration goes on with, if any.
    """
    params = algorithm.init(jax.random.fold_in(key, 0), policy_params)
    trained, _ = split_trained(params, optimizers)
    updates, _ = lora.split(policy_params)

    def copied():
        return jax.tree.map(jnp.copy, updates)

    return TrainState(
        step=jnp.int32(0),
        skipped=jnp.int32(0),
        params=params,
        opt_state={name: optimizers[name].init(trained[name]) for name in trained},
        reference=copied() if algorithm.keeps_reference else None,
        controls={name: jnp.float32(value) for name, value in algorithm.controls.items()},
        key=jax.random.fold_in(key, 1),
        past=tuple(copied() for _ in range(behaviour_lag)),
        unfinished=jax.tree.map(jnp.asarray, unfinished),
    )


def sampling_policy(state: TrainState) -> ArrayTree:
    """Parameters of the policy that samples: those of `train.behaviour_lag` iterations ago."""
    policy = state.params["policy"]
    return lora.join(state.past[0], lora.split(policy)[1]) if state.past else policy


def next_sampling_policy(state: TrainState) -> ArrayTree:
    """`sampling_policy` of the state that this one's iteration will leave, known before it ends.

    Raises:
      ValueError: without `train.behaviour_lag` it depends on the updates.
    """
    if not state.past:
        raise ValueError("the state has no past policies; train.behaviour_lag must be at least 1")
    policy = state.params["policy"]
    return lora.join(state.past[1], lora.split(policy)[1]) if state.past[1:] else policy


def init_policy(model: Transformer, key: Array) -> ArrayTree:
    """Random policy parameters, boxed with their logical axes."""
    dummy = jnp.zeros((1, 1), jnp.int32)
    return model.init(key, dummy, dummy)["params"]


def _keep_statistics(state: TrainState, context: Context) -> TrainState:
    """The state with the statistics of the critic's features that `prepare` has found."""
    if context.whitening is None:
        return state
    critic = {**state.params["critic"], STATISTICS: context.whitening}
    return state.replace(params={**state.params, "critic": critic})


def _all_finite(tree: ArrayTree) -> ArrayTree:
    return jax.tree.map(lambda x: jnp.all(jnp.isfinite(x)), tree)


def apply_gradients(
    optimizers: Optimizers,
    state: TrainState,
    grads: ArrayTree,
    active: Mapping[str, Array],
    means: Mapping[str, Array],
) -> TrainState:
    """One optimizer step per network; a network that is not active keeps params and moments.

    Args:
      optimizers: by network.
      state: before the step.
      grads: of what trains, from `accumulate_gradients`.
      active: [] bool by network.
      means: each term's mean over the minibatch, which optimizers get as the extra argument
        `means`.
    """
    trained, rest = split_trained(state.params, optimizers)
    params, opt_state = {}, {}
    for name, optimizer in optimizers.items():
        old = (trained[name], state.opt_state[name])
        optimizer = optax.with_extra_args_support(optimizer)
        updates, moments = optimizer.update(grads[name], old[1], old[0], means=means)
        new = (optax.apply_updates(old[0], updates), moments)
        keep = functools.partial(jnp.where, active[name])
        params[name], opt_state[name] = jax.tree.map(keep, new, old)
    return state.replace(params=join_trained(params, rest), opt_state=opt_state)


def update(
    state: TrainState,
    batch: Batch,
    context: Context,
    *,
    algorithm: Algorithm,
    optimizers: Optimizers,
    schedule: Schedule,
) -> tuple[TrainState, dict[str, Array], dict]:
    """All updates of one iteration; pure, to be jitted with the keyword arguments static.

    An update whose gradient or loss is not finite changes no parameter and is counted in
    `state.skipped`, the length of the run of such updates so far.

    Args:
      state: at the start of the iteration.
      batch: [B, ...] leaves; B is a multiple of minibatches * microbatches.
      context: shared inputs.
      algorithm: gives the loss.
      optimizers: by network; a network without one stays as it is.
      schedule: how rows become updates.

    Returns:
      The state after the iteration, metrics averaged over its finite updates (NaN where there
      is none), and a report: "worst", the longest run of skipped updates; "applied", how many were
      not skipped; "finite", which gradients and terms were finite in every update.
    """
    rows = batch.tokens.shape[0]
    state = _keep_statistics(state, context)
    first, _ = lora.split(state.params["policy"])
    key = jax.random.fold_in(state.key, state.step)

    def one_update(state, inputs):
        indices, number = inputs
        piece = over_devices(jax.tree.map(lambda x: x[indices], batch))
        loss_key = jax.random.fold_in(key, number)
        grads, means = accumulate_gradients(
            algorithm,
            state.params,
            piece,
            context,
            loss_key,
            schedule.microbatches,
            tuple(optimizers),
            schedule.microbatch_tokens,
        )
        norms = {f"{name}/gradient_norm": optax.tree.norm(grads[name]) for name in optimizers}
        # A norm may overflow where no gradient does; clipping by it would then give 0.
        finite = {
            "gradient": _all_finite(grads),
            "loss": _all_finite(means),
            "norm": _all_finite(norms),
        }
        sound = jnp.all(jnp.stack(jax.tree.leaves(finite)))
        # While only the critic learns, the momentum of the others must not move them either.
        learns = sound & (context.policy_scale > 0)
        active = {name: sound if name == "critic" else learns for name in optimizers}
        state = apply_gradients(optimizers, state, grads, active, means)
        state = state.replace(skipped=jnp.where(sound, 0, state.skipped + 1))
        return state, (means | norms, sound, state.skipped, finite)

    order_key = jax.random.fold_in(key, ORDER)
    orders = [
        jax.random.permutation(jax.random.fold_in(order_key, epoch), rows)
        for epoch in range(schedule.epochs)
    ]
    indices = jnp.concatenate(orders).reshape(schedule.epochs * schedule.minibatches, -1)
    numbers = jnp.arange(len(indices))
    state, (metrics, sound, skipped, finite) = jax.lax.scan(one_update, state, (indices, numbers))
    applied = jnp.sum(sound)
    metrics = jax.tree.map(lambda x: jnp.sum(jnp.where(sound, x, 0.0)) / applied, metrics)
    report = {
        "worst": jnp.max(skipped),
        "applied": applied,
        "finite": jax.tree.map(lambda x: jnp.all(x, axis=0), finite),
    }
    past = (*state.past, first)[1:] if state.past else ()
    return state.replace(step=state.step + 1, past=past), metrics, report
