"""From a configuration to the objects of a run, checked against each other; and the warm start."""

import logging
import time
from dataclasses import dataclass, replace

import jax
from transformers import PreTrainedTokenizerBase

from dfpo_jax.algorithms import ALGORITHMS, sft
from dfpo_jax.models.transformer import Transformer
from dfpo_jax.rollout.rollout import Sampler, demonstrations
from dfpo_jax.sharding import create_mesh
from dfpo_jax.tasks.base import Item, Task
from dfpo_jax.tokenizers import character_tokenizer, encode
from dfpo_jax.training.config import Config, TaskConfig
from dfpo_jax.training.learner import Learner, Schedule
from dfpo_jax.training.optim import make_optimizer
from dfpo_jax.types import ArrayTree

_LOG = logging.getLogger(__name__)

# Folded into the run's key, one for each use.
INIT, WARM_START, EVALUATE, CRITIC, ROLLOUT = range(5)


@dataclass(frozen=True)
class EvaluationSet:
    """Fixed held-out items, with a sampler whose prompt slots fit the longest of them."""

    task: Task
    items: list[Item]
    sampler: Sampler


@dataclass(frozen=True)
class Run:
    """Everything a configuration builds; nothing in it is compiled yet.

    `started` is the `time.perf_counter` at which building began.
    """

    config: Config
    key: jax.Array
    tokenizer: PreTrainedTokenizerBase
    sampler: Sampler
    learner: Learner
    train_task: Task
    evaluations: dict[str, EvaluationSet]
    started: float

    @property
    def reward_range(self) -> tuple[float, float] | None:
        """Range of the rewards the learner sees, or None where no bound is known."""
        bounds = self.train_task.reward_range
        bounds = None if bounds is None else self.config.noise.reward_range(*bounds)
        clip = self.config.policy.reward_clip
        if clip == 0.0:
            return bounds
        low, high = (-clip, clip) if bounds is None else bounds
        return max(low, -clip), min(high, clip)


def build_run(config: Config) -> Run:
    """Build tokenizer, tasks, model and learner, and check them against each other.

    Raises:
      ValueError: a data set, alphabet, length or mesh that does not fit, by name.
    """
    started = time.perf_counter()
    tokenizer = character_tokenizer(
        config.tokenizer.alphabet, pad_is_eos=config.tokenizer.pad_is_eos
    )
    if len(tokenizer) > config.model.vocab_size:
        raise ValueError(
            f"config.model.vocab_size is {config.model.vocab_size}; the tokenizer has "
            f"{len(tokenizer)} tokens"
        )
    mesh = create_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    _check_division(config, mesh)
    model = Transformer(config.model)
    sampler = Sampler(model, tokenizer, config.train.prompt_length, config.sampling, mesh)
    tasks = {"in_domain": config.task, "out_of_domain": config.out_of_domain}
    evaluations = {}
    for name, section in tasks.items():
        evaluations[name] = _evaluation_set(section, config, sampler)
    train_task = config.task.build("train")
    demonstrations(
        tokenizer,
        train_task.batch(0, config.warm_start.batch_size),
        prompt_length=config.train.prompt_length,
        response_length=config.sampling.max_new_tokens,
    )
    learner = make_learner(config, model, mesh)
    key = jax.random.key(config.seed)
    return Run(config, key, tokenizer, sampler, learner, train_task, evaluations, started)


def make_learner(
    config: Config, model: Transformer, mesh: jax.sharding.Mesh, schedule: Schedule | None = None
) -> Learner:
    """The learner of a configuration; `mesh` may consist of devices that are only described.

    Args:
      config: the run.
      model: its policy.
      mesh: device mesh.
      schedule: updates per call; by default those of an iteration.
    """
    constructor, _ = ALGORITHMS[config.algorithm]
    train = config.train
    per_iteration = train.epochs * train.minibatches
    updates = {
        "policy": max(train.iterations - config.critic.warmup, 0) * per_iteration,
        "critic": train.iterations * per_iteration,
    }
    return Learner(
        model,
        constructor(model, config.algorithm_config(), config.sampling.temperature),
        {
            "policy": make_optimizer(config.policy_optimizer, updates["policy"]),
            "critic": make_optimizer(config.critic_optimizer, updates["critic"]),
        },
        schedule or Schedule(train.epochs, train.minibatches, train.microbatches),
        mesh,
        keep_reference=config.policy.kl_coefficient > 0.0,
        kl_coefficient=config.policy.kl_coefficient,
        max_skipped=train.max_skipped,
    )


def _evaluation_set(section: TaskConfig, config: Config, sampler: Sampler) -> EvaluationSet:
    task = section.build("held_out")
    items = task.items(config.evaluation.items)
    longest = max(len(encode(sampler.tokenizer, item.prompt)) for item in items)
    fitted = replace(sampler, prompt_length=longest)
    limit = config.model.max_positions - config.sampling.max_new_tokens
    if longest > limit:
        raise ValueError(
            f"a held-out prompt of {task.name} has {longest} tokens; config.model.max_positions - "
            f"sampling.max_new_tokens leaves room for {limit}"
        )
    return EvaluationSet(task, items, fitted)


def _check_division(config: Config, mesh: jax.sharding.Mesh) -> None:
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    train = config.train
    rows = train.prompts * train.samples // (train.minibatches * train.microbatches)
    sizes = {
        "train.prompts * samples / (minibatches * microbatches)": rows,
        "warm_start.batch_size": config.warm_start.batch_size,
        "evaluation.critic_prompts * critic_samples": config.evaluation.critic_prompts
        * config.evaluation.critic_samples,
    }
    for name, size in sizes.items():
        if size % parts:
            raise ValueError(f"config.{name} is {size}; mesh data * fsdp, {parts}, must divide it")


def warm_start(run: Run) -> ArrayTree:
    """Policy parameters after supervised steps on the training split's own answers."""
    config = run.config.warm_start
    optimizer = make_optimizer(config.optimizer, config.steps)
    learner = Learner(
        run.sampler.model,
        sft(run.sampler.model),
        {"policy": optimizer},
        Schedule(),
        run.learner.mesh,
    )
    state = learner.start(jax.random.fold_in(run.key, WARM_START))
    for step in range(config.steps):
        # Iterations of reinforcement learning draw from steps 0, 1, ...: stay clear of them.
        items = run.train_task.batch(2**30 + step, config.batch_size)
        rollout = demonstrations(
            run.tokenizer,
            items,
            prompt_length=run.sampler.prompt_length,
            response_length=run.config.sampling.max_new_tokens,
        )
        state, metrics = learner.update(state, *learner.prepare(state, rollout))
        if step % 50 == 49 or step == config.steps - 1:
            loss = metrics["policy/cross_entropy"]
            _LOG.info("warm start %d/%d: cross-entropy %.3f", step + 1, config.steps, loss)
    return state.params["policy"]
