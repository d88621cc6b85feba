"""dfpo_jax's own loop does the work of its command line and prints how long it took.

Settings. Where responses have several lengths, prompts and responses are packed, two full rows to a
piece, as in `_benchmark/packing.py`; where all have one length, rows are read as they are, in the
pieces of the work.
"""

import dataclasses
import time

import jax
from work import CLIP_NORM, LEARNING_RATE, Work, asked, number_tokenizer, reward

from dfpo_jax.models.transformer import Transformer
from dfpo_jax.rollout.sampler import Sampler
from dfpo_jax.sharding import create_mesh
from dfpo_jax.tasks import Item, Task
from dfpo_jax.training import compilation_cache
from dfpo_jax.training.config import Config, default_config, parse_config
from dfpo_jax.training.loop import iteration
from dfpo_jax.training.rollouts import Rollouts
from dfpo_jax.training.run import Run, make_learner


class EvenTokens(Task):
    """Prompts of the work, and the reward of all trainers."""

    name, reward_range = "even tokens", (0.0, 1.0)

    def __init__(self, work: Work):
        """Write all prompts."""
        self._batches = work.batches()

    def batch(self, step: int, size: int) -> list[Item]:
        """Those of an iteration."""
        return [Item(text, "") for text in self._batches[step][:size]]

    def items(self, count: int) -> list[Item]:
        """The first ones."""
        return self.batch(0, count)

    def score(self, item: Item, response: str) -> float:
        """The share of even tokens."""
        return reward(response)


def configuration(work: Work) -> Config:
    """GRPO with the work's sizes."""
    config = default_config()
    config.algorithm = "grpo"
    config.model.update(
        vocab_size=work.vocab_size,
        d_model=work.d_model,
        num_layers=work.num_layers,
        num_heads=work.num_heads,
        num_kv_heads=work.num_kv_heads,
        head_dim=work.head_dim,
        d_ff=work.d_ff,
        norm_eps=1e-5,
    )
    config.sampling.max_new_tokens = work.response_length
    config.train.update(
        prompts=work.prompts,
        samples=work.samples,
        prompt_length=work.prompt_length,
        minibatches=1,
        iterations=work.total,
    )
    if work.ends:
        config.train.microbatch_tokens = 2 * (work.prompt_length + work.response_length)
    else:
        config.train.microbatches = work.pieces
    config.policy_optimizer.update(learning_rate=LEARNING_RATE, clip_norm=CLIP_NORM)
    return parse_config(config)


def run_of(work: Work) -> Run:
    """What the training loop needs, without evaluation."""
    config, mesh, task = configuration(work), create_mesh(), EvenTokens(work)
    model, tokenizer = Transformer(config.model), number_tokenizer(work)
    learner = make_learner(config, model, mesh)
    sampler = Sampler(
        model, tokenizer, work.prompt_length, config.sampling, mesh, eos_ids=work.end_ids
    )
    return Run(
        config=config,
        key=jax.random.key(0),
        tokenizer=tokenizer,
        sampler=dataclasses.replace(sampler, top=learner.top),
        learner=learner,
        train_task=task,
        evaluations={},
        rewards=config.rewards.build(task.reward_range, task.items(work.prompts)),
        plan=config.plan.build(work.samples),
        started=time.perf_counter(),
    )


def main():
    """Train, and answer."""
    work, clock = asked()
    compilation_cache.set_up(None)  # as the command line does
    run = run_of(work)
    state = run.learner.start(run.key)
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    slots = work.rows * (work.prompt_length + work.response_length)
    with Rollouts(run) as rollouts:
        for _ in range(work.total):
            state, metrics, _ = iteration(run, state, rollouts)
            jax.block_until_ready(state)
            responses = round(metrics["rollout/length"] * work.rows)
            clock.count(round((1.0 - metrics["time/padding"]) * slots) - responses, responses)
            names = ("sample", "prepare", "update")
            clock.end(**{name: metrics[f"time/{name}_seconds"] for name in names})
    clock.answer(parameters, ("dfpo-jax", "flax", "jax"))


if __name__ == "__main__":
    main()
