"""The programs of a run, ready to be lowered: abstract arguments with shardings, no arrays."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dfpo_jax.models import decode
from dfpo_jax.models.transformer import Transformer
from dfpo_jax.rollout.generate import generate
from dfpo_jax.rollout.sampling import draw
from dfpo_jax.sharding import batch_devices, batch_sharding, mesh_context, replicated
from dfpo_jax.training.config import Config
from dfpo_jax.training.run import check_division, make_learner
from dfpo_jax.training.update import Schedule
from dfpo_jax.types import Rollout

PROGRAMS = ("prefill", "decode", "sample", "prepare", "train")


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

    Raises:
      ValueError: the mesh does not divide a batch.
    """

    def __init__(self, config: Config, mesh: Mesh):
        """Builds the model and the abstract state; nothing is computed."""
        check_division(config, mesh)
        self.config, self.mesh = config, mesh
        self.model = Transformer(config.model)
        schedule = Schedule(microbatches=config.train.microbatches)
        self.learner = make_learner(config, self.model, mesh, schedule)

    def lower(self, name: str) -> jax.stages.Lowered:
        """One of `PROGRAMS`.

        "prefill": the prompts that run at once through the model, with the gathering of the
        parameters for decoding. "decode": one token for every slot, the cache donated;
        prompts that wait for a slot take their own cache beside it, which is not counted.
        "sample": the whole of sampling, in whose loop both are, without a stop text.
        "prepare": targets and advantages of the iteration's rollout. "train": one update on one
        minibatch, all its micro-batches, both optimizers, the state donated.
        """
        train = self.config.train
        with mesh_context(self.mesh):
            if name == "prefill":
                return self._prefill(train.prompts)
            if name == "decode":
                return self._decode(train.prompts * train.samples)
            if name == "sample":
                return self._sample(train.prompts, train.samples)
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
        if name in ("prefill", "sample"):
            return bytes_per_chip(state) - bytes_per_chip(state.params["policy"])
        return 0

    def _prefill(self, prompts: int):
        """The prompts of one piece, and the parameters as decoding reads them."""
        sampling = self.config.sampling
        prompts = self._divided(min(sampling.prefill_rows or prompts, prompts))
        shape = (prompts, self.config.train.prompt_length)

        def prefill(params, tokens, mask):
            cache = decode.prefill(self.model, params, tokens, mask, sampling.cache_dtype)
            return decode.hold(self.model, params), cache

        policy = self.learner.abstract_state.params["policy"]
        return jax.jit(prefill).lower(policy, self._rows(shape, jnp.int32), self._rows(shape))

    def _decode(self, rows: int):
        sampling, model = self.config.sampling, self.model
        rows = self._divided(min(sampling.slots or rows, rows))
        columns = self.config.train.prompt_length + sampling.max_new_tokens
        policy = self.learner.abstract_state.params["policy"]

        def start(params):
            cache = decode.init_cache(model.config, rows, columns, sampling.cache_dtype)
            return decode.hold(model, params), cache

        # Compiled for its layout alone: what it gives lies where decoding finds it.
        held, cache = self._as_compiled(jax.jit(start), policy)

        def advance(held, cache, token, alive, keys):
            logits, cache = decode.step(model.config, held, token, alive, cache)
            return *draw(keys, logits, sampling), cache

        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
        keys = self._rows(keys.shape, keys.dtype)
        token, alive = self._rows((rows,), jnp.int32), self._rows((rows,), bool)
        return jax.jit(advance, donate_argnums=1).lower(held, cache, token, alive, keys)

    def _sample(self, prompts: int, samples: int):
        prompts, ends = self._divided(prompts), (0,)
        shape = (prompts, self.config.train.prompt_length)
        run = functools.partial(
            generate,
            self.model,
            config=self.config.sampling,
            eos_ids=ends,
            pad_id=0,
            num_samples=samples,
        )
        policy = self.learner.abstract_state.params["policy"]
        key = jax.eval_shape(lambda: jax.random.key(0))
        key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated(self.mesh))
        return jax.jit(run).lower(policy, self._rows(shape, jnp.int32), self._rows(shape), key)

    def _divided(self, rows: int) -> int:
        """So many rows, or a few more that the mesh divides."""
        parts = batch_devices()
        return -(-rows // parts) * parts

    def _as_compiled(self, jitted, *inputs):
        """Abstract results of a program, with the shardings that its compilation gives them."""
        lowered = jitted.lower(*inputs)
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            lowered.out_info,
            lowered.compile().output_shardings,
        )

    def _rows(self, shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(self.mesh))

    def _placed(self, tree, sharding):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

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
