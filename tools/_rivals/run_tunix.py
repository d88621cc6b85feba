"""tunix's GRPOLearner does the work of its command line and prints how long it took.

Settings. What tunix recommends for fast rollouts (vLLM, SGLang-JAX) needs an accelerator, so the
engine is "vanilla", its own sampler. Actor and rollout share one mesh and therefore one copy of the
weights. The key-value cache is as long as a sequence, its shortest, as a step attends to all of it.
Top-p is 1 and top-k off, with which tunix skips sorting the vocabulary. Rollouts take all rows at
once. Rematerialisation, checkpoints and logs are off. With one update per sampling tunix evaluates
no old log-probabilities.

What tunix does otherwise. It counts the token that ends a response neither as part of the response
nor in the loss. Its packing (`max_seq_token_per_tpu`) needs a model that takes segment ids, which
its Llama does not, so rows of ragged responses are padded to the limit. Every iteration samples
with the key of its configuration, which is changed here between iterations.
"""

import logging
from collections.abc import Iterator

import jax
import numpy as np
import optax
import tunix  # noqa: F401 - sets up flax before models are imported
from flax import nnx
from tunix.models.llama3.model import Llama3, ModelConfig
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rl_cluster import ClusterConfig, RLCluster, RLTrainingConfig, Role
from tunix.rl.rollout.base_rollout import RolloutConfig
from work import CLIP_NORM, LEARNING_RATE, Clock, Work, asked, number_tokenizer, reward


def model(work: Work) -> Llama3:
    """A random Llama."""
    config = ModelConfig(
        num_layers=work.num_layers,
        vocab_size=work.vocab_size,
        embed_dim=work.d_model,
        hidden_dim=work.d_ff,
        num_heads=work.num_heads,
        head_dim=work.head_dim,
        num_kv_heads=work.num_kv_heads,
        rope_theta=10_000,
        norm_eps=1e-5,
        weight_tying=True,
    )
    return Llama3(config, rngs=nnx.Rngs(0))


def batches(work: Work, clock: Clock, rollout: RolloutConfig) -> Iterator[dict[str, np.ndarray]]:
    """Prompts of one iteration after another.

    The learner asks for the next ones when an iteration is over, which is told to the clock; only
    the first it asks for ahead.
    """
    for number, texts in enumerate(work.batches()):
        rollout.seed = number
        yield {"prompts": np.array(texts)}
        clock.end()


def learner(work: Work, clock: Clock, rollout: RolloutConfig) -> GRPOLearner:
    """The learner, which counts the tokens of every iteration."""
    axes = {"axis_names": ("fsdp", "tp"), "axis_types": 2 * (jax.sharding.AxisType.Auto,)}
    mesh = jax.make_mesh((1, 1), **axes)
    training = RLTrainingConfig(
        actor_optimizer=optax.chain(
            optax.clip_by_global_norm(CLIP_NORM), optax.adamw(LEARNING_RATE, weight_decay=0.0)
        ),
        eval_every_n_steps=work.total + 1,
        max_steps=work.total + 1,
        mini_batch_size=work.prompts,
        train_micro_batch_size=work.prompts // work.pieces if work.pieces > 1 else None,
        rollout_micro_batch_size=work.prompts,
        compute_logps_micro_batch_size=work.prompts,
    )
    cluster = RLCluster(
        actor=model(work),
        tokenizer=number_tokenizer(work),
        cluster_config=ClusterConfig(
            role_to_mesh={Role.ACTOR: mesh, Role.REFERENCE: mesh, Role.ROLLOUT: mesh},
            rollout_engine="vanilla",
            training_config=training,
            rollout_config=rollout,
        ),
    )

    def share_of_even(prompts, completions, **others) -> list[float]:
        clock.count(*(sum(len(text.split()) for text in texts) for texts in (prompts, completions)))
        return [reward(text) for text in completions]

    algorithm = GRPOConfig(num_generations=work.samples, num_iterations=1, beta=0.0)
    return GRPOLearner(rl_cluster=cluster, algo_config=algorithm, reward_fns=share_of_even)


def main():
    """Train, and answer."""
    logging.disable(logging.WARNING)
    work, clock = asked()
    rollout = RolloutConfig(
        max_tokens_to_generate=work.response_length,
        max_prompt_length=work.prompt_length,
        kv_cache_size=work.prompt_length + work.response_length,
        temperature=1.0,
        top_p=1.0,
        eos_tokens=list(work.end_ids),
    )
    found = learner(work, clock, rollout)
    found.train(batches(work, clock, rollout))
    state = nnx.state(found.rl_cluster.actor_trainer.model, nnx.Param)
    parameters = sum(x.size for x in jax.tree.leaves(state))
    clock.answer(parameters, ("google-tunix", "flax", "jax"))


if __name__ == "__main__":
    main()
