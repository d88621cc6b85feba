"""From a batch to new parameters: minibatches, exact micro-batch accumulation, finite checks."""

import functools
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from dfpo_jax.algorithms.interface import Algorithm, Batch, Context
from dfpo_jax.algorithms.packing import pack, plan_packs, rows_at_once, taken
from dfpo_jax.metric import Metric
from dfpo_jax.models import lora
from dfpo_jax.models.transformer import Transformer
from dfpo_jax.types import Array, ArrayTree, Term, TrainState

# Folded into an iteration's key beside the update numbers 0, 1, ...
ORDER, PREPARE = 2**31, 2**31 + 1
_STATISTICS = "whitening"  # of the critic's features, among its parameters

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
) -> TrainState:
    """A fresh train state around given policy parameters; pure, boxes pass through.

    Args:
      algorithm: gives the parameters and the first controls.
      optimizers: by network; a network without one stays as it is.
      policy_params: starting point; also the KL reference where one is kept.
      key: typed PRNG key of the run.
      behaviour_lag: iterations by which the sampling policy is behind.
    """
    params = algorithm.init(jax.random.fold_in(key, 0), policy_params)
    trained, _ = _split(params, optimizers)
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
    )


def sampling_policy(state: TrainState) -> ArrayTree:
    """Parameters of the policy that samples: those of `train.behaviour_lag` iterations ago."""
    policy = state.params["policy"]
    return lora.join(state.past[0], lora.split(policy)[1]) if state.past else policy


def init_policy(model: Transformer, key: Array) -> ArrayTree:
    """Random policy parameters, boxed with their logical axes."""
    dummy = jnp.zeros((1, 1), jnp.int32)
    return model.init(key, dummy, dummy)["params"]


def _split(params: ArrayTree, networks: Collection[str]) -> tuple[ArrayTree, ArrayTree]:
    """What trains in the named networks, and the rest: other networks, and what is given there.

    Given are the kernels that LoRA freezes, and the statistics of the critic's features.
    """
    trained = {name: params[name] for name in params if name in networks}
    rest = {name: params[name] for name in params if name not in networks}
    if "policy" in trained:
        trained["policy"], rest["policy"] = lora.split(trained["policy"])
    if "critic" in trained and _STATISTICS in trained["critic"]:
        critic = dict(trained["critic"])
        rest["critic"] = {_STATISTICS: critic.pop(_STATISTICS)}
        trained["critic"] = critic
    return trained, rest


def _join(trained: ArrayTree, rest: ArrayTree) -> ArrayTree:
    params = {**rest, **trained}
    if "policy" in trained:
        params["policy"] = lora.join(trained["policy"], rest["policy"])
    if "critic" in trained and "critic" in rest:
        params["critic"] = {**trained["critic"], **rest["critic"]}
    return params


def _keep_statistics(state: TrainState, context: Context) -> TrainState:
    """The state with the statistics of the critic's features that `prepare` has found."""
    if context.whitening is None:
        return state
    critic = {**state.params["critic"], _STATISTICS: context.whitening}
    return state.replace(params={**state.params, "critic": critic})


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
    networks: Collection[str],
    microbatch_tokens: int = 0,
) -> tuple[ArrayTree, dict[str, Array]]:
    """Gradient of the objective over a minibatch by what trains, and each term's mean.

    Counts are summed over all pieces before any gradient is taken, so the result does not depend on
    how the minibatch is split, beyond float rounding. That pass traces the whole loss a second
    time; counts depend on masks alone, so the compiler removes everything else from it.

    Args:
      algorithm: gives the loss.
      params: of all networks.
      batch: [B, ...] leaves.
      context: shared inputs.
      key: PRNG key of the losses.
      microbatches: pieces; must divide B.
      networks: those to differentiate by; with LoRA, the policy's low-rank updates alone.
      microbatch_tokens: 0, or the size of pieces of packed rows, see `Schedule`; `microbatches` is
        then not read.
    """
    split = functools.partial(_packs, tokens=microbatch_tokens)
    if not microbatch_tokens:
        split = functools.partial(_pieces, count=microbatches)
    count, piece_of = split(batch)

    def counts_of(number):
        terms = algorithm.loss(params, piece_of(number), context, key)
        return {name: jnp.float32(t.count) for name, t in terms.items()}

    counts = _summed(counts_of, count)
    objective = functools.partial(_objective, algorithm, context, key, counts)
    grads, totals = {}, {}
    for group, is_of in _groups(algorithm, networks):
        if grads:  # only when the gradients before are there
            params, batch, grads = jax.lax.optimization_barrier((params, batch, grads))
        more = _gradients(objective, params, *split(batch), group, is_of)
        grads, totals = grads | more[0], totals | more[1]
    means = {name: totals[name] / jnp.maximum(counts[name], 1.0) for name in totals}
    return grads, means


def _groups(
    algorithm: Algorithm, networks: Collection[str]
) -> list[tuple[Collection[str], Callable[[str], bool]]]:
    """Networks that are differentiated together, and whether a term, by name, is theirs.

    A critic that shares no activations with the policy comes by itself, afterwards: the program
    then never holds the activations of both.
    """
    others = [name for name in networks if name != "critic"]
    if algorithm.separate_critic and others and "critic" in networks:
        return [
            (others, lambda term: term.startswith("policy/")),
            (["critic"], lambda term: not term.startswith("policy/")),
        ]
    return [(networks, lambda term: True)]


def _gradients(
    objective: Callable,
    params: ArrayTree,
    count: Array | int,
    piece_of: Callable[[Array], Batch],
    networks: Collection[str],
    is_of: Callable[[str], bool],
) -> tuple[ArrayTree, dict[str, Array]]:
    """Gradients by some networks, and the totals of their terms; sums over all pieces."""
    trained, rest = _split(params, networks)
    gradient = jax.grad(lambda t, piece: objective(_join(t, rest), piece), has_aux=True)

    def gradient_of(number):
        grads, terms = gradient(trained, piece_of(number))
        return grads, {name: t.total for name, t in terms.items() if is_of(name)}

    return _summed(gradient_of, count)


def _summed(function: Callable[[Array], ArrayTree], count: Array | int) -> ArrayTree:
    """The float32 sum of a function of 0 .. count - 1."""
    shapes = jax.eval_shape(function, jnp.int32(0))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
    return jax.lax.fori_loop(
        0, count, lambda n, total: jax.tree.map(jnp.add, total, function(n)), zeros
    )


def _pieces(batch: Batch, count: int) -> tuple[int, Callable[[Array], Batch]]:
    """`count` pieces of as many rows, and piece by number."""

    def split(x):  # every k-th row, so that each device keeps its rows
        return jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0)

    pieces = _over_devices(jax.tree.map(split, batch), axis=1)
    return count, lambda number: jax.tree.map(lambda x: x[number], pieces)


def _packs(batch: Batch, tokens: int) -> tuple[Array, Callable[[Array], Batch]]:
    """How many pieces of packed rows the batch fills, and piece by number."""
    rows = rows_at_once(tokens, batch.sequence.shape[1], batch.sequence.shape[0])
    lengths = jnp.sum(batch.valid, axis=1, dtype=jnp.int32)
    packs, count = plan_packs(lengths, batch.sequence.shape[1], rows)

    def piece_of(number):
        piece = taken(batch, packs[number])
        return piece.replace(packed=pack(piece.sequence, piece.valid))

    return count, piece_of


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
    trained, rest = _split(state.params, optimizers)
    params, opt_state = {}, {}
    for name, optimizer in optimizers.items():
        old = (trained[name], state.opt_state[name])
        optimizer = optax.with_extra_args_support(optimizer)
        updates, moments = optimizer.update(grads[name], old[1], old[0], means=means)
        new = (optax.apply_updates(old[0], updates), moments)
        keep = functools.partial(jnp.where, active[name])
        params[name], opt_state[name] = jax.tree.map(keep, new, old)
    return state.replace(params=_join(params, rest), opt_state=opt_state)


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
        piece = _over_devices(jax.tree.map(lambda x: x[indices], batch))
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
