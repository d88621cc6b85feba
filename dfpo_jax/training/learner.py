"""The programs of an algorithm, jitted and sharded over a mesh."""

import functools
import logging
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import numpy as np

from dfpo_jax.algorithms.interface import Algorithm, Batch, Context, Observed
from dfpo_jax.memory import Checked
from dfpo_jax.metric import Metric
from dfpo_jax.models.transformer import Transformer
from dfpo_jax.sharding import mesh_context, put_batch, put_replicated, shardings, to_host
from dfpo_jax.training.update import PREPARE, Optimizers, Schedule, init_policy, init_state, update
from dfpo_jax.types import VALUE_UNITS, Array, ArrayTree, Rollout, TrainState, Unfinished

_LOG = logging.getLogger(__name__)

_PREPARE_ADVICE = (
    "lower train.prompts, train.samples, train.prompt_length or sampling.max_new_tokens, or set "
    "train.microbatches, train.microbatch_tokens or log_probs.chunk"
)
_UPDATE_ADVICE = (
    "raise train.minibatches or train.microbatches, set train.microbatch_tokens, set model.remat "
    "to 'full', set critic.trunk to 'detached', or lower sampling.max_new_tokens, "
    "train.prompt_length or train.prompts"
)
METRICS = (
    Metric(
        "train/skipped_updates",
        "How many of the iteration's updates changed nothing, because a loss, a gradient or its "
        "norm was not finite. The log names the tensors. The other means leave these updates out.",
        healthy="0.",
        advice="More than `train.max_skipped` in a row stop the run. Lower the learning rates, "
        "bound the rewards (`rewards.clip.bound`), set `critic.flow.value_bound`, or use float32 "
        "(`model.dtype`).",
    ),
)
_CRITIC_ADVICE = "lower evaluation.critic_prompts or evaluation.critic_samples"


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
      max_skipped: updates in a row whose loss or gradient may be other than finite.
      behaviour_lag: iterations by which the sampling policy is behind.
      unfinished: responses that the first iteration goes on with, if any.
    """

    def __init__(
        self,
        model: Transformer,
        algorithm: Algorithm,
        optimizers: Optimizers,
        schedule: Schedule,
        mesh: jax.sharding.Mesh,
        *,
        max_skipped: int = 0,
        behaviour_lag: int = 0,
        unfinished: Unfinished | None = None,
    ):
        """Jit the programs; nothing compiles before the first call."""
        self.model, self.mesh, self.max_skipped = model, mesh, max_skipped
        self._init = functools.partial(
            init_state,
            algorithm,
            optimizers,
            behaviour_lag=behaviour_lag,
            unfinished=unfinished,
        )
        self._algorithm = algorithm
        boxed = jax.eval_shape(lambda key: self._init(init_policy(model, key), key), _dummy_key())
        self.state_shardings = nn.unbox(shardings(boxed, mesh))
        self.abstract_state = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            nn.unbox(boxed),
            self.state_shardings,
        )

        def prepare(state, rollout):
            key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), PREPARE)
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
        reads = "reading the first policy's states"
        self._features = _checked(reads, algorithm.features, _PREPARE_ADVICE)

    @property
    def has_critic(self) -> bool:
        """Whether there are returns to predict."""
        return self._predict is not None

    @property
    def top(self) -> int:
        """Of how many most probable tokens the sampler shall give log-probabilities."""
        return self._algorithm.top

    @property
    def controls(self) -> tuple[str, ...]:
        """Names of what the objectives change between iterations."""
        return tuple(name for name in self._algorithm.controls if name not in VALUE_UNITS)

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

    def keep(self, state: TrainState, unfinished: Unfinished | None) -> TrainState:
        """The state with what an iteration's rollout has left unfinished."""
        put = functools.partial(put_replicated, mesh=self.mesh)
        return state.replace(unfinished=jax.tree.map(put, unfinished))

    def observe(self, state: TrainState, observed: Observed) -> TrainState:
        """The state with the controls of an iteration that has seen these rewards."""
        return self._controlled(state, self._algorithm.observe, observed)

    def adapt(self, state: TrainState, means: Mapping[str, float]) -> TrainState:
        """The state with the controls after an iteration's updates, whose metrics are `means`."""
        return self._controlled(state, self._algorithm.adapt, means)

    def _controlled(self, state, change, argument):
        old = {name: float(value) for name, value in state.controls.items()}
        new = change(old, argument)
        controls = {
            name: put_replicated(np.float32(new[name]), self.mesh) if new[name] != old[name] else x
            for name, x in state.controls.items()
        }
        return state.replace(controls=controls)

    def prepare(self, state: TrainState, rollout: Rollout) -> tuple[Batch, Context]:
        """Targets and advantages of a rollout, by the state that the iteration starts with.

        Raises:
          MemoryError: the program does not fit the devices; nothing ran.
        """
        with mesh_context(self.mesh):
            return self._prepare(state, put_batch(rollout, self.mesh))

    def ahead(self, rollout: Rollout, held_out: Rollout | None = None) -> None:
        """Compile all programs before there is a state.

        Args:
          rollout: of `prepare` and `update`, abstract, with the shardings of `put_batch`.
          held_out: of `predict` and `trajectories`, likewise; None to leave them out.
        """
        state = self.abstract_state

        def placed(shape, sharding):
            return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

        with mesh_context(self.mesh):
            places = self._prepare.ahead(state, rollout).output_shardings
            shapes = jax.eval_shape(self._prepare.jitted, state, rollout)
            self._update.ahead(state, *jax.tree.map(placed, shapes, places))
            for function in (self._predict, self._paths):
                if function is not None and held_out is not None:
                    function.ahead(state, held_out)

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

    def response_features(self, state: TrainState, rollout: Rollout) -> np.ndarray | None:
        """What the first policy's states say of responses, [B, 2 D + 2] float32.

        See `algorithms.trunk.response_features`; None where the state does not hold that policy.
        """
        return self._on_mesh(self._features, state, rollout, 0)

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


def _checked(name: str, function: Callable | None, advice: str = _CRITIC_ADVICE) -> Checked | None:
    return None if function is None else Checked(name, jax.jit(function), advice)


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
