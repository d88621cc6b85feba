"""The gradient of a minibatch, piece by piece, and what is differentiated."""

import functools
from collections.abc import Callable, Collection, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from dfpo_jax.algorithms.interface import Algorithm, Batch, Context
from dfpo_jax.models import lora
from dfpo_jax.models.packing import pack, pieces_of, plan_packs, rows_at_once, taken
from dfpo_jax.types import Array, ArrayTree, Term

STATISTICS = "whitening"
"""Of the critic's features, among its parameters."""


def split_trained(params: ArrayTree, networks: Collection[str]) -> tuple[ArrayTree, ArrayTree]:
    """What trains in the named networks, and the rest: other networks, and what is given there.

    Given are the kernels that LoRA freezes, and the statistics of the critic's features.
    """
    trained = {name: params[name] for name in params if name in networks}
    rest = {name: params[name] for name in params if name not in networks}
    if "policy" in trained:
        trained["policy"], rest["policy"] = lora.split(trained["policy"])
    if "critic" in trained and STATISTICS in trained["critic"]:
        critic = dict(trained["critic"])
        rest["critic"] = {STATISTICS: critic.pop(STATISTICS)}
        trained["critic"] = critic
    return trained, rest


def join_trained(trained: ArrayTree, rest: ArrayTree) -> ArrayTree:
    """What `split_trained` took apart."""
    params = {**rest, **trained}
    if "policy" in trained:
        params["policy"] = lora.join(trained["policy"], rest["policy"])
    if "critic" in trained and "critic" in rest:
        params["critic"] = {**trained["critic"], **rest["critic"]}
    return params


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
            count, piece_of = split(batch)
        more = _gradients(objective, params, count, piece_of, group, is_of)
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
    trained, rest = split_trained(params, networks)
    gradient = jax.grad(lambda t, piece: objective(join_trained(t, rest), piece), has_aux=True)

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
    pieces = pieces_of(batch, count)
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


def over_devices(batch: Batch) -> Batch:
    """Asks the compiler to keep rows split over the mesh."""

    def one(x):
        return nn.with_logical_constraint(x, ("batch", *(None,) * (x.ndim - 1)))

    return jax.tree.map(one, batch)
