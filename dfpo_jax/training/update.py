"""From a batch to new parameters: minibatches, exact micro-batch accumulation, finite checks."""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from dfpo_jax.algorithms.base import Algorithm, Batch, Context
from dfpo_jax.models import lora
from dfpo_jax.models.transformer import Transformer
from dfpo_jax.types import Array, ArrayTree, Term, TrainState

# Folded into an iteration's key beside the update numbers 0, 1, ...
ORDER, PREPARE = 2**31, 2**31 + 1

Optimizers = Mapping[str, optax.GradientTransformation]


class Schedule(NamedTuple):
    """How an iteration's rows become updates: passes, updates per pass, pieces per update."""

    epochs: int = 1
    minibatches: int = 1
    microbatches: int = 1


def init_state(
    algorithm: Algorithm,
    optimizers: Optimizers,
    policy_params: ArrayTree,
    key: Array,
    *,
    keep_reference: bool,
    kl_coefficient: float = 0.0,
) -> TrainState:
    """A fresh train state around given policy parameters; pure, boxes pass through.

    Args:
      algorithm: gives the parameters.
      optimizers: "policy" and, with a critic, "critic".
      policy_params: starting point; also the KL reference where one is kept.
      key: typed PRNG key of the run.
      keep_reference: whether a KL to the start is measured.
      kl_coefficient: its first weight.
    """
    params = algorithm.init(jax.random.fold_in(key, 0), policy_params)
    trained, _ = _split(params)
    reference = jax.tree.map(jnp.copy, trained["policy"]) if keep_reference else None
    return TrainState(
        step=jnp.int32(0),
        skipped=jnp.int32(0),
        params=params,
        opt_state={name: optimizers[name].init(trained[name]) for name in params},
        reference=reference,
        kl_coefficient=jnp.float32(kl_coefficient),
        value_shift=jnp.float32(0.0),
        value_scale=jnp.float32(1.0),
        key=jax.random.fold_in(key, 1),
    )


def init_policy(model: Transformer, key: Array) -> ArrayTree:
    """Random policy parameters, boxed with their logical axes."""
    dummy = jnp.zeros((1, 1), jnp.int32)
    return model.init(key, dummy, dummy)["params"]


def _split(params: ArrayTree) -> tuple[ArrayTree, ArrayTree]:
    """What trains, by network, and what LoRA keeps as it is: kernels of the policy and all else."""
    trained, frozen = lora.split(params["policy"])
    return {**params, "policy": trained}, frozen


def _join(trained: ArrayTree, frozen: ArrayTree) -> ArrayTree:
    return {**trained, "policy": lora.join(trained["policy"], frozen)}


def _objective(
    algorithm: Algorithm, context: Context, key: Array, counts: Mapping[str, Array], params, batch
) -> tuple[Array, dict[str, Term]]:
    """sum_k weight_k total_k / count_k with the counts of the whole minibatch."""
    terms = algorithm.loss(params, batch, context, key)
    parts = [t.weight * t.total / jnp.maximum(counts[name], 1.0) for name, t in terms.items()]
    return sum(parts[1:], parts[0]), terms


def accumulate_gradients(
    algorithm: Algorithm,
    params: ArrayTree,
    batch: Batch,
    context: Context,
    key: Array,
    microbatches: int,
) -> tuple[ArrayTree, dict[str, Array]]:
    """Gradient of the objective over a minibatch by what trains, and each term's mean.

    Counts are summed over all micro-batches before any gradient is taken, so the result does not
    depend on `microbatches` beyond float rounding.

    Args:
      algorithm: gives the loss.
      params: differentiated by; with LoRA, of the policy's only the low-rank updates.
      batch: [B, ...] leaves.
      context: shared inputs.
      key: PRNG key of the losses.
      microbatches: pieces; must divide B.
    """

    def split(x):  # every k-th row, so that each device keeps its rows
        return jnp.moveaxis(x.reshape(-1, microbatches, *x.shape[1:]), 1, 0)

    pieces = _over_devices(jax.tree.map(split, batch), axis=1)
    sum_leading = functools.partial(jax.tree.map, lambda x: jnp.sum(x, axis=0))

    def counts_of(piece):
        return {name: t.count for name, t in algorithm.loss(params, piece, context, key).items()}

    counts = sum_leading(jax.lax.map(counts_of, pieces))
    objective = functools.partial(_objective, algorithm, context, key, counts)
    trained, frozen = _split(params)
    gradient = jax.grad(lambda t, piece: objective(_join(t, frozen), piece), has_aux=True)

    def step(total, piece):
        grads, terms = gradient(trained, piece)
        return jax.tree.map(jnp.add, total, grads), {name: t.total for name, t in terms.items()}

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), trained)
    grads, totals = jax.lax.scan(step, zeros, pieces)
    totals = sum_leading(totals)
    means = {name: totals[name] / jnp.maximum(counts[name], 1.0) for name in totals}
    return grads, means


def _over_devices(batch: Batch, axis: int = 0) -> Batch:
    """Asks the compiler to keep rows, along `axis` of every leaf, split over the mesh."""

    def one(x):
        names = [None] * x.ndim
        names[axis] = "batch"
        return nn.with_logical_constraint(x, tuple(names))

    return jax.tree.map(one, batch)


def _all_finite(tree: ArrayTree) -> ArrayTree:
    return jax.tree.map(lambda x: jnp.all(jnp.isfinite(x)), tree)


def apply_gradients(
    optimizers: Optimizers, state: TrainState, grads: ArrayTree, active: Mapping[str, Array]
) -> TrainState:
    """One optimizer step per network; a network that is not active keeps params and moments.

    Args:
      optimizers: by network.
      state: before the step.
      grads: of what trains, from `accumulate_gradients`.
      active: [] bool by network.
    """
    trained, frozen = _split(state.params)
    params, opt_state = {}, {}
    for name, optimizer in optimizers.items():
        old = (trained[name], state.opt_state[name])
        updates, moments = optimizer.update(grads[name], old[1], old[0])
        new = (optax.apply_updates(old[0], updates), moments)
        keep = functools.partial(jnp.where, active[name])
        params[name], opt_state[name] = jax.tree.map(keep, new, old)
    return state.replace(params=_join(params, frozen), opt_state=opt_state)


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
      optimizers: "policy" and, with a critic, "critic".
      schedule: epochs, minibatches, microbatches.

    Returns:
      The state after the iteration, metrics averaged over its finite updates (NaN where there
      is none), and a report: "worst", the longest run of skipped updates; "applied", how many were
      not skipped; "finite", which gradients and terms were finite in every update.
    """
    rows = batch.tokens.shape[0]
    key = jax.random.fold_in(state.key, state.step)

    def one_update(state, inputs):
        indices, number = inputs
        piece = _over_devices(jax.tree.map(lambda x: x[indices], batch))
        loss_key = jax.random.fold_in(key, number)
        grads, means = accumulate_gradients(
            algorithm, state.params, piece, context, loss_key, schedule.microbatches
        )
        norms = {f"{name}/gradient_norm": optax.tree.norm(grads[name]) for name in optimizers}
        # A norm may overflow where no gradient does; clipping by it would then give 0.
        finite = {
            "gradient": _all_finite(grads),
            "loss": _all_finite(means),
            "norm": _all_finite(norms),
        }
        sound = jnp.all(jnp.stack(jax.tree.leaves(finite)))
        active = {"policy": sound & (context.policy_scale > 0), "critic": sound}
        state = apply_gradients(optimizers, state, grads, active)
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
    return state.replace(step=state.step + 1), metrics, report
