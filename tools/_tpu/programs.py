"""The programs of a run, ready to be lowered: abstract arguments with shardings, no arrays."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from dfpo_jax.models import lora
from dfpo_jax.models.transformer import Transformer, init_cache
from dfpo_jax.rollout.sampling import draw, next_logits, sampling_model, sampling_params
from dfpo_jax.sharding import LOGICAL_RULES, batch_sharding, mesh_context, replicated
from dfpo_jax.training.config import Config
from dfpo_jax.training.learner import Schedule
from dfpo_jax.training.run import make_learner
from dfpo_jax.types import Rollout

PROGRAMS = ("prefill", "decode", "prepare", "train")


def bytes_per_chip(tree) -> int:
    """Size of one chip's share of abstract arrays with shardings."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


class Lowering:
    """Lowers the programs of one configuration on one mesh, whose devices need not exist.

    Args:
      config: the run; its model's `attention` names a back end of the mesh's platform.
      mesh: with the sizes of `config.mesh`.
    """

    def __init__(self, config: Config, mesh: Mesh):
        """Builds the model and the abstract state; nothing is computed."""
        self.config, self.mesh = config, mesh
        self.model = Transformer(config.model)
        schedule = Schedule(microbatches=config.train.microbatches)
        self.learner = make_learner(config, self.model, mesh, schedule)

    def lower(self, name: str) -> jax.stages.Lowered:
        """One of `PROGRAMS`.

        "prefill": the prompts of an iteration into a fresh cache, with the gathering of the
        parameters for sampling. "decode": one token for every response of the iteration, the
        cache donated. "prepare": targets and advantages of the iteration's rollout. "train": one
        update on one minibatch, all its micro-batches, both optimizers, the state donated.
        """
        train = self.config.train
        with mesh_context(self.mesh):
            if name == "prefill":
                return self._prefill(train.prompts)
            if name == "decode":
                return self._decode(train.prompts * train.samples)
            programs, state = self.learner.programs, self.learner.abstract_state
            rows = train.prompts * train.samples
            if name == "prepare":
                return programs["prepare"].lower(state, self._rollout(rows))
            rollout = self._rollout(rows // train.minibatches)
            batch, context = jax.eval_shape(programs["prepare"], state, rollout)
            batch = self._placed(batch, batch_sharding(self.mesh))
            context = self._placed(context, replicated(self.mesh))
            return programs["update"].lower(state, batch, context)

    def resident(self, name: str) -> int:
        """Bytes per chip of the train state that stay in memory beside a program's own.

        Sampling leaves optimizer states, critic and reference where they are, and decoding, which
        reads gathered parameters, the policy too.
        """
        state = self.learner.abstract_state
        if name == "decode":
            return bytes_per_chip(state)
        if name == "prefill":
            return bytes_per_chip(state) - bytes_per_chip(state.params["policy"])
        return 0

    def _prefill(self, prompts: int):
        length = self.config.train.prompt_length
        tokens = self._rows((prompts, length), jnp.int32)
        slots = length + self.config.sampling.max_new_tokens

        def prefill(params, tokens, mask):
            params = sampling_params(self.model, params)
            cache = init_cache(self.model.config, prompts, slots)
            return next_logits(sampling_model(self.model), params, tokens, mask, cache)

        policy = self.learner.abstract_state.params["policy"]
        return jax.jit(prefill).lower(policy, tokens, self._rows((prompts, length)))

    def _decode(self, rows: int):
        slots = self.config.train.prompt_length + self.config.sampling.max_new_tokens
        config = self.model.config
        cache = jax.eval_shape(functools.partial(init_cache, config, rows, slots))
        cache = jax.tree.map(
            lambda x: self._named(x, {5: "- batch length kv_heads -", 2: "batch length", 0: ""}),
            cache,
        )
        policy = self.learner.abstract_state.params["policy"]
        params = jax.eval_shape(functools.partial(sampling_params, self.model), policy)
        model = sampling_model(self.model)
        params = jax.tree.map(
            lambda x, old: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=self._without_fsdp(old.sharding)
            ),
            params,
            lora.split(policy)[1] or policy,
        )

        def decode(params, cache, token, done, key):
            logits, cache = next_logits(model, params, token[:, None], ~done[:, None], cache)
            return *draw(key, logits, self.config.sampling), cache

        key = jax.eval_shape(lambda: jax.random.key(0))
        token, done = self._rows((rows,), jnp.int32), self._rows((rows,), bool)
        return jax.jit(decode, donate_argnums=1).lower(params, cache, token, done, key)

    def _rows(self, shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(self.mesh))

    def _placed(self, tree, sharding):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    def _named(self, x, names):
        axes = tuple(None if name == "-" else name for name in names[x.ndim].split())
        spec = nn.logical_to_mesh_axes(axes, tuple(LOGICAL_RULES.items()))
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(self.mesh, spec))

    def _without_fsdp(self, sharding: NamedSharding) -> NamedSharding:
        spec = (None if axis == "fsdp" else axis for axis in sharding.spec)
        return NamedSharding(self.mesh, jax.sharding.PartitionSpec(*spec))

    def _rollout(self, rows: int) -> Rollout:
        prompt, response = self.config.train.prompt_length, self.config.sampling.max_new_tokens
        return Rollout(
            prompt_tokens=self._rows((rows, prompt), jnp.int32),
            prompt_mask=self._rows((rows, prompt)),
            tokens=self._rows((rows, response), jnp.int32),
            mask=self._rows((rows, response)),
            log_probs=self._rows((rows, response)),
            truncated=self._rows((rows,), bool),
            rewards=self._rows((rows,)),
            clean_rewards=self._rows((rows,)),
            groups=self._rows((rows,), jnp.int32),
        )
