"""Lowers the programs of a run with abstract arguments and shardings, without arrays."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dfpo_jax.memory import compiled
from dfpo_jax.models import decode
from dfpo_jax.models.transformer import Transformer
from dfpo_jax.rollout.sampling import draw
from dfpo_jax.sharding import mesh_context
from dfpo_jax.training.config import Config
from dfpo_jax.training.programs import Programs, bytes_per_chip
from dfpo_jax.training.run import check_division, make_learner
from dfpo_jax.training.update import Schedule

PROGRAMS = ("prefill", "decode", "sample", "prepare", "train")


class Lowering(Programs):
    """Lowers the programs of one configuration on one mesh, whose devices need not exist.

    Args:
      config: the run; its model's `attention` names a back end of the mesh's platform.
      mesh: a mesh with the sizes of `config.mesh`.

    Raises:
      ValueError: the mesh does not divide a batch.
    """

    def __init__(self, config: Config, mesh: Mesh):
        """Builds the model and the abstract state without computing anything."""
        check_division(config, mesh)
        train = config.train
        schedule = Schedule(1, 1, train.microbatches, train.microbatch_tokens)
        learner = make_learner(config, Transformer(config.model), mesh, schedule)
        super().__init__(config, learner, config.train.minibatches)

    def lower(self, name: str) -> jax.stages.Lowered:
        """Lowers one of `PROGRAMS`.

        "prefill" runs one piece of the prompts through the model and gathers the parameters for
        decoding. "decode" adds one token in every slot and donates the cache; the cache of prompts
        that wait for a slot is not counted. "sample" is the whole of sampling, whose loop contains
        both. "prepare" is the same as in a run. "train" is one update on one minibatch, with all
        its micro-batches and both optimizers.
        """
        train = self.config.train
        with mesh_context(self.mesh):
            if name == "prefill":
                return self._prefill(train.prompts)
            if name == "decode":
                return self._decode(train.prompts * self.round_samples)
        return super().lower(name)

    def slots(self, name: str) -> int:
        """Slots of the sequences that "prepare" or "train" reads; 0 for the others."""
        train = self.config.train
        length = train.prompt_length + self.config.sampling.max_new_tokens
        rows = train.prompts * train.samples
        return {"prepare": rows, "train": rows // train.minibatches}.get(name, 0) * length

    def resident(self, name: str) -> int:
        """Bytes per chip of the train state that stay in memory besides a program's own.

        During sampling these are optimizer states, critic and reference. Decoding reads gathered
        parameters, so the policy stays in memory too.
        """
        state = self.learner.abstract_state
        if name == "decode":
            return bytes_per_chip(state)
        if name in ("prefill", "sample"):
            return bytes_per_chip(state) - bytes_per_chip(state.params["policy"])
        return 0

    def _prefill(self, prompts: int):
        """Lowers the prefill of one piece of the prompts, with `gather_params`."""
        sampling = self.config.sampling
        prompts = self.divided(min(sampling.prefill_rows or prompts, prompts))
        shape = (prompts, self.config.train.prompt_length)

        def prefill(params, tokens, mask):
            _, cache = decode.prefill(self.model, params, tokens, mask, sampling.cache_dtype)
            return decode.gather_params(self.model, params), cache

        policy = self.learner.abstract_state.params["policy"]
        return jax.jit(prefill).lower(policy, self.rows(shape, jnp.int32), self.rows(shape))

    def _decode(self, rows: int):
        sampling, model = self.config.sampling, self.model
        rows = self.divided(min(sampling.slots or rows, rows))
        columns = self.config.train.prompt_length + sampling.max_new_tokens
        policy = self.learner.abstract_state.params["policy"]

        def start(params):
            cache = decode.init_cache(model.config, rows, columns, sampling.cache_dtype)
            return decode.gather_params(model, params), cache

        # Compiled only to find the layout of its results, which decoding reads.
        gathered, cache = self._as_compiled(jax.jit(start), policy)

        def advance(gathered, cache, token, alive, keys):
            logits, _, cache = decode.step(model.config, gathered, token, alive, cache)
            return *draw(keys, logits, sampling), cache

        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
        keys = self.rows(keys.shape, keys.dtype)
        token, alive = self.rows((rows,), jnp.int32), self.rows((rows,), bool)
        return jax.jit(advance, donate_argnums=1).lower(gathered, cache, token, alive, keys)

    def _as_compiled(self, jitted, *inputs):
        """Abstract results of a program, with the shardings that the compiler chose."""
        lowered = jitted.lower(*inputs)
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            lowered.out_info,
            compiled(lowered, self.mesh.devices.flat).output_shardings,
        )
