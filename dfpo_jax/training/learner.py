"""From a rollout to new parameters: minibatches, exact micro-batch accumulation, finite checks."""

import functools
import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dfpo_jax.algorithms.base import Algorithm, Batch, Context
from dfpo_jax.memory import Checked
from dfpo_jax.models import lora
from dfpo_jax.models.transformer import Transformer
from dfpo_jax.sharding import mesh_context, put_batch, shardings, to_host
from dfpo_jax.types import Array, ArrayTree, Rollout, Term, TrainState

_LOG = logging.getLogger(__name__)

# Folded into an iteration's key beside the update numbers 0, 1, ...
_ORDER, _PREPARE = 2**31, 2**31 + 1

_PREPARE_ADVICE = (
    "lower train.prompts, train.samples, train.prompt_length or sampling.max_new_tokens, or set "
    "policy.logits_chunk"
)
_UPDATE_ADVICE = (
    "raise train.minibatches or train.microbatches, set model.remat to 'full', set critic.trunk to "
    "'detached', or lower sampling.max_new_tokens, train.prompt_length or train.prompts"
)
_CRITIC_ADVICE = "lower evaluation.critic_prompts or evaluation.critic_samples"

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

    order_key = jax.random.fold_in(key, _ORDER)
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


class Learner:
    """`prepare`, `update`, `predict` and `trajectories` of an algorithm, jitted on a mesh.

    State shardings follow from the logical axes of the parameters; states passed to `update` are
    donated.

    Args:
      model: the policy.
      algorithm: its pure functions.
      optimizers: by network.
      schedule: updates per iteration.
      mesh: device mesh.
      keep_reference: whether the state holds a KL reference.
      kl_coefficient: first KL weight.
      max_skipped: updates in a row whose loss or gradient may be other than finite.
    """

    def __init__(
        self,
        model: Transformer,
        algorithm: Algorithm,
        optimizers: Optimizers,
        schedule: Schedule,
        mesh: jax.sharding.Mesh,
        *,
        keep_reference: bool = False,
        kl_coefficient: float = 0.0,
        max_skipped: int = 0,
    ):
        """Jit the programs; nothing compiles before the first call."""
        self.model, self.mesh, self.max_skipped = model, mesh, max_skipped
        self._init = functools.partial(
            init_state,
            algorithm,
            optimizers,
            keep_reference=keep_reference,
            kl_coefficient=kl_coefficient,
        )
        boxed = jax.eval_shape(lambda key: self._init(init_policy(model, key), key), _dummy_key())
        self.state_shardings = nn.unbox(shardings(boxed, mesh))
        self.abstract_state = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            nn.unbox(boxed),
            self.state_shardings,
        )

        def prepare(state, rollout):
            key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), _PREPARE)
            return algorithm.prepare(state, rollout, key)

        self._prepare = Checked("preparing a batch", jax.jit(prepare), _PREPARE_ADVICE)
        self._updates = schedule.epochs * schedule.minibatches
        whole_update = functools.partial(
            update, algorithm=algorithm, optimizers=optimizers, schedule=schedule
        )
        out_shardings = (self.state_shardings, None, None)
        self._update = Checked(
            "the train step",
            jax.jit(whole_update, donate_argnums=0, out_shardings=out_shardings),
            _UPDATE_ADVICE,
        )
        self._predict = _checked("predicting returns", algorithm.predict)
        self._paths = _checked("following the flow", algorithm.trajectories)

    @property
    def has_critic(self) -> bool:
        """Whether there are returns to predict."""
        return self._predict is not None

    @property
    def programs(self) -> dict[str, jax.stages.Wrapped]:
        """The jitted functions behind `prepare` and `update`, to lower on `abstract_state`."""
        return {"prepare": self._prepare.jitted, "update": self._update.jitted}

    def start(self, key: Array, policy_params: ArrayTree | None = None) -> TrainState:
        """A fresh state, born sharded; random policy parameters unless given."""

        def build(key, params):
            params = init_policy(self.model, key) if params is None else params
            return nn.unbox(self._init(params, key))

        with mesh_context(self.mesh):
            return jax.jit(build, out_shardings=self.state_shardings)(key, policy_params)

    def prepare(self, state: TrainState, rollout: Rollout) -> tuple[Batch, Context]:
        """Targets and advantages of a rollout under the frozen state.

        Raises:
          MemoryError: the program does not fit the devices; nothing ran.
        """
        with mesh_context(self.mesh):
            return self._prepare(state, put_batch(rollout, self.mesh))

    def update(self, state: TrainState, batch: Batch, context: Context):
        """All updates of an iteration: (state, metrics). The old state is donated.

        Updates whose loss or gradient is not finite are skipped, logged with the tensors' names
        and counted in the metric "train/skipped_updates".

        Raises:
          FloatingPointError: more than `max_skipped` updates in a row were skipped; names the
            iteration and the tensors.
          MemoryError: the program does not fit the devices; nothing ran.
        """
        step = int(state.step)
        with mesh_context(self.mesh):
            state, metrics, report = self._update(state, batch, context)
        metrics, report = to_host((metrics, report))
        skipped = self._updates - int(report["applied"])
        if skipped:
            message = f"iteration {step}: {_broken(report['finite'])}; updates skipped: {skipped}"
            if report["worst"] > self.max_skipped:
                raise FloatingPointError(
                    f"{message}, {report['worst']} in a row (train.max_skipped allows "
                    f"{self.max_skipped})"
                )
            _LOG.warning(message)
        metrics = {name: float(x) for name, x in metrics.items()}
        return state, metrics | {"train/skipped_updates": float(skipped)}

    def predict(self, state: TrainState, rollout: Rollout) -> Array | None:
        """Return quantiles [B, R, M] in raw reward units, or None without a critic."""
        return self._on_mesh(self._predict, state, rollout, 0)

    def trajectories(self, state: TrainState, rollout: Rollout) -> Array | None:
        """The flow's positions [17, B, M] at s_0, or None without a flow."""
        return self._on_mesh(self._paths, state, rollout, 1)

    def _on_mesh(self, function, state, rollout, axis):
        """Any number of rows, which lie along `axis` of the result."""
        if function is None:
            return None
        rows = rollout.tokens.shape[0]
        extra = -rows % (self.mesh.shape["data"] * self.mesh.shape["fsdp"])
        rollout = jax.tree.map(
            lambda x: np.pad(x, [(0, extra)] + [(0, 0)] * (np.ndim(x) - 1), mode="edge"), rollout
        )
        with mesh_context(self.mesh):
            whole = to_host(function(state, put_batch(rollout, self.mesh)))
        return np.take(whole, np.arange(rows), axis=axis)


def _checked(name: str, function: Callable | None) -> Checked | None:
    return None if function is None else Checked(name, jax.jit(function), _CRITIC_ADVICE)


def _broken(finite: dict) -> str:
    """For example "not finite: gradient/policy/embedding, loss/policy/loss and 3 more"."""
    names = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, good in jax.tree_util.tree_leaves_with_path(finite)
        if not good
    ]
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"not finite: {', '.join(names[:4])}{more}"


def _dummy_key() -> Array:
    return jax.eval_shape(lambda: jax.random.key(0))
