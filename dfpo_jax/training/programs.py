"""The programs of a run on abstract arguments: to be lowered and compiled, with no array made."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from dfpo_jax.rollout.generate import generate
from dfpo_jax.sharding import batch_devices, batch_sharding, copied_to, mesh_context, replicated
from dfpo_jax.training.config import Config
from dfpo_jax.training.learner import Learner
from dfpo_jax.types import ArrayTree, Rollout, rollout_of


def bytes_per_chip(tree: ArrayTree) -> int:
    """Size of one chip's share of abstract arrays with shardings."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


class Programs:
    """Lowers what an iteration runs; the devices of the learner's mesh need not exist.

    Prompts have `train.prompt_length` slots.

    Args:
      config: the run; its model's `attention` names a back end of the mesh's platform.
      learner: of that run.
      minibatches: one update call gets the rows of an iteration divided by this.
      rollout_mesh: samples; the learner's by default.
    """

    def __init__(
        self,
        config: Config,
        learner: Learner,
        minibatches: int = 1,
        rollout_mesh: jax.sharding.Mesh | None = None,
    ):
        """Nothing is lowered yet."""
        self.config, self.learner, self.mesh = config, learner, learner.mesh
        self._rollout_mesh = rollout_mesh or learner.mesh
        self.model, self._minibatches = learner.model, minibatches

    def lower(self, name: str) -> jax.stages.Lowered:
        """One program, which `compile` turns into one that says how much memory it needs.

        Args:
          name: "sample": the whole of sampling, without a stop text; with partial rollouts, a round
            of all responses that are in flight, the longest that go on. "prepare": targets and
            advantages of the iteration's rollout. "train": the updates on it, the state donated.
        """
        train, state = self.config.train, self.learner.abstract_state
        rows = train.prompts * train.samples
        if name == "sample":
            with mesh_context(self._rollout_mesh):
                return self._sample()
        with mesh_context(self.mesh):
            prepare, update = self.learner.programs["prepare"], self.learner.programs["update"]
            if name == "prepare":
                return prepare.lower(state, self.rollout(rows))
            batch, context = jax.eval_shape(prepare, state, self.rollout(rows))
            batch = jax.tree.map(
                lambda x: self.rows((x.shape[0] // self._minibatches, *x.shape[1:]), x.dtype), batch
            )
            context = self._placed(context, replicated(self.mesh))
            return update.lower(state, batch, context)

    @property
    def round_samples(self) -> int:
        """Responses to a prompt that are sampled at once."""
        samples = self.config.train.samples
        return self.config.plan.build(samples).round_samples or samples

    def rows(
        self,
        shape: tuple[int, ...],
        dtype: Any = jnp.float32,
        mesh: jax.sharding.Mesh | None = None,
    ) -> jax.ShapeDtypeStruct:
        """An array whose first axis is split over a mesh's data axes, by default the learner's."""
        return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh or self.mesh))

    def divided(self, rows: int) -> int:
        """So many rows, or a few more that the mesh in force divides."""
        parts = batch_devices()
        return -(-rows // parts) * parts

    def rollout(self, rows: int) -> Rollout:
        """A rollout of so many responses, with all that the plan gives."""
        samples, slots = self.config.train.samples, self.config.train.prompt_length
        return self._rollout(rows, samples, slots, self.config.plan.build(samples).gives)

    def drawn(self, prompts: int, samples: int, slots: int) -> Rollout:
        """Responses to prompts of so many slots, as they are sampled, with rows for the mesh."""
        with mesh_context(self.mesh):
            return self._rollout(self.divided(prompts * samples), samples, slots)

    def _rollout(self, rows: int, samples: int, slots: int, gives: tuple[str, ...] = ()) -> Rollout:
        model = self.config.model
        return rollout_of(
            self.rows,
            rows,
            slots,
            self.config.sampling.max_new_tokens,
            samples=samples,
            gives=gives,
            top=self.learner.top,
            states=model.d_model if self.config.keeps_states else 0,
            dtype=model.dtype,
        )

    def _sample(self):
        train, sampling, partial = self.config.train, self.config.sampling, self.config.partial
        prompts, samples = sampling.part_of(train.prompts), self.round_samples
        slots = train.prompt_length
        if partial.tokens > 0:  # every response has a prompt of its own, with what it has so far
            prompts, samples = (train.prompts + partial.spare) * samples, 1
            slots += sampling.max_new_tokens - partial.tokens
            sampling = dataclasses.replace(sampling, max_new_tokens=partial.tokens)
        shape = (self.divided(prompts), slots)
        run = functools.partial(
            generate,
            self.model,
            config=sampling,
            eos_ids=(0,),
            pad_id=0,
            num_samples=samples,
            top=self.learner.top,
            keep_states=self.config.keeps_states,
        )
        mesh = self._rollout_mesh
        policy = copied_to(self.learner.abstract_state.params["policy"], mesh)
        key = jax.eval_shape(lambda: jax.random.key(0))
        key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated(mesh))
        tokens, mask = self.rows(shape, jnp.int32, mesh), self.rows(shape, mesh=mesh)
        return jax.jit(run).lower(policy, tokens, mask, key)

    def _placed(self, tree, sharding):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )
