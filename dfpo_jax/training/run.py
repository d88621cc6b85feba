"""From a configuration to the objects of a run, checked against each other."""

import functools
import importlib.util
import logging
import time
from dataclasses import asdict, dataclass, replace

import jax
from transformers import PreTrainedTokenizerBase

from dfpo_jax.algorithms import Algorithm, compose
from dfpo_jax.algorithms.interface import Observed
from dfpo_jax.models import pretrained
from dfpo_jax.models.packing import whole_layout
from dfpo_jax.models.transformer import Transformer
from dfpo_jax.plans import Plan
from dfpo_jax.rewards import Link, Rewards
from dfpo_jax.rollout.collect import given
from dfpo_jax.rollout.partial import first_unfinished
from dfpo_jax.rollout.sampler import Sampler
from dfpo_jax.sharding import create_meshes
from dfpo_jax.tasks.base import Item, Task
from dfpo_jax.tokenizers import beginning
from dfpo_jax.training.config import Config
from dfpo_jax.training.evaluation_sets import EvaluationSet, accepts, evaluation_sets
from dfpo_jax.training.learner import Learner
from dfpo_jax.training.optim import make_optimizer
from dfpo_jax.training.run_tokens import build_tokenizer, chat_of, ending_ids
from dfpo_jax.training.update import Optimizers, Schedule
from dfpo_jax.training.value_model import check_value_model
from dfpo_jax.types import Array, Rollout

_LOG = logging.getLogger(__name__)

# Folded into the run's key, one for each use.
INIT, WARM_START, EVALUATE, CRITIC, ROLLOUT, LORA, START = range(7)
_PIECE = 256  # given responses that are encoded at once


@dataclass(frozen=True)
class Run:
    """Everything a configuration builds; nothing in it is compiled yet and no weights are read.

    The configuration's `model` is that of the weights, where they have a source, and its tasks have
    the values of their presets.
    `started` is the `time.perf_counter` at which building began.
    """

    config: Config
    key: jax.Array
    tokenizer: PreTrainedTokenizerBase
    sampler: Sampler
    learner: Learner
    train_task: Task
    evaluations: dict[str, EvaluationSet]
    rewards: Link
    plan: Plan
    started: float

    @property
    def reward_range(self) -> tuple[float, float] | None:
        """Range of the rewards the learner sees, or None where no bound is known."""
        if self.plan.range is not None:
            return self.plan.range
        return self.rewards.range(self.train_task.reward_range)

    @property
    def clean_range(self) -> tuple[float, float] | None:
        """The verifier's own range in units of the rewards the learner sees, or None.

        Half its width is `least_scale`. Its midpoint is that of the range that the reward chain
        makes of it without noise and penalties.
        """
        if self.plan.range is not None:
            return self.plan.range
        if self.train_task.reward_range is None:
            return None
        low, high = self.rewards.clean(self.train_task.reward_range)
        middle, half = (low + high) / 2, self.least_scale
        return middle - half, middle + half

    @property
    def least_scale(self) -> float:
        """The smallest unit of value where noise is unbounded: half the verifier's own range.

        1e-3 where the task declares none; both times the factor of the reward chain.
        """
        bounds = self.train_task.reward_range
        return (1e-3 if bounds is None else (bounds[1] - bounds[0]) / 2) * self.rewards.unit

    @property
    def sampled_at_once(self) -> tuple[int, int]:
        """Prompts and responses to each in one call of the sampler."""
        train, sampling = self.config.train, self.config.sampling
        return sampling.part_of(train.prompts), self.plan.round_samples or train.samples

    @property
    def critic_items(self) -> list[Item]:
        """Held-out prompts that the critic is evaluated at.

        None without a critic, and where the plan gives the rewards: what is sampled has others,
        which the critic is not to predict.
        """
        if not self.learner.has_critic or self.plan.range is not None:
            return []
        return self.evaluations["in_domain"].items[: self.config.evaluation.critic_prompts]

    def observed(self, rewards: Array, step: int) -> Observed:
        """The rewards of an iteration, with what is known of all rewards of the run."""
        ranges = {"range": self.reward_range, "clean_range": self.clean_range}
        return Observed(rewards, **ranges, least_scale=self.least_scale, first=step == 0)


def build_run(config: Config, training: bool = True) -> Run:
    """Build tokenizer, tasks, model and learner, and check them against each other.

    Args:
      config: the run.
      training: False for a run that is only looked at: its mesh need not divide the batches of
        training, and its published weights need not be there any more.

    Raises:
      ValueError: a data set, alphabet, length, mesh, reward link or file of weights that does not
        fit, by name.
    """
    started = time.perf_counter()
    config = replace(
        config,
        model=config.weights.model_config(config.model),
        task=config.task.resolved(),
        out_of_domain=config.out_of_domain.resolved(),
    )
    tokenizer = build_tokenizer(config)
    mesh, rollout_mesh = create_meshes(**asdict(config.mesh))
    if training:
        check_division(config, mesh)
    model = Transformer(config.model)
    sampler = _sampler(config, tokenizer, model, rollout_mesh)
    evaluations = evaluation_sets(config, sampler)
    train_task = config.task.build("train", accepts(config.task, sampler))
    critic_items = evaluations["in_domain"].items[: config.evaluation.critic_prompts]
    plan = config.plan.build(config.train.samples)
    _check_items(config, sampler, train_task, critic_items, plan)
    prompts = train_task.everything() or train_task.batch(0, config.train.prompts)
    learner = make_learner(config, model, mesh)
    run = Run(
        config=config,
        key=jax.random.key(config.seed),
        tokenizer=tokenizer,
        sampler=replace(sampler, top=learner.top, keep_states=config.keeps_states),
        learner=learner,
        train_task=train_task,
        evaluations=evaluations,
        rewards=config.rewards.build(train_task.reward_range, prompts),
        plan=plan,
        started=started,
    )
    if training:
        _check_training(run)
    return run


def _sampler(
    config: Config, tokenizer: PreTrainedTokenizerBase, model: Transformer, mesh: jax.sharding.Mesh
) -> Sampler:
    """The sampler of the training task."""
    chat = chat_of(config.task, tokenizer)
    beginning(tokenizer, config.tokenizer.begin)
    return Sampler(
        model=model,
        tokenizer=tokenizer,
        prompt_length=config.train.prompt_length,
        config=config.sampling,
        mesh=mesh,
        eos_ids=ending_ids(config, tokenizer, chat),
        chat=chat,
        truncate_prompts=config.task.overlong == "truncate",
        stop=config.task.stop,
        prompt_buckets=config.train.prompt_buckets,
        begin=config.tokenizer.begin,
    )


def _check_training(run: Run) -> None:
    """Raises ValueError for rewards, a verifier or weights that no training could use."""
    config, bounds = run.config, run.reward_range
    run.train_task.trial()
    check_value_model(config, run.learner)
    if run.rewards.start and config.plan.name != "uniform" and not run.train_task.everything():
        raise ValueError(
            f"config.plan.name is {config.plan.name!r} and the prompts of {run.train_task.name} "
            f"are endless; config.rewards.{', '.join(run.rewards.start.settings)} must know before "
            "the first iteration which prompts will be drawn, so plan.name must be 'uniform'"
        )
    if bounds is not None and bounds[0] >= bounds[1]:
        raise ValueError(
            f"config.rewards makes of the task's rewards, which lie in "
            f"{run.train_task.reward_range}, {bounds}: all of them would be equal"
        )
    if bounds is None and config.advantage.channel.is_on:
        raise ValueError(
            "config.advantage.channel acts on a law on the two ends of the range of rewards, and "
            f"no range is known of those of {run.train_task.name}, so its rates must be 0.0"
        )
    if config.log.wandb_project and importlib.util.find_spec("wandb") is None:
        raise ValueError(
            f"config.log.wandb_project is {config.log.wandb_project!r}, and there is no wandb: "
            "pip install 'dfpo_jax[wandb]'"
        )
    if config.weights.source:
        pretrained.check(config.weights.source, **config.weights.all_overrides(config.model))
    if config.model.param_dtype != "float32" and config.model.lora.rank == 0:
        _LOG.warning(
            "config.model.param_dtype is %s: updates below 1/256 of a parameter are lost; train "
            "float32 parameters (model.dtype may be bfloat16), or LoRA",
            config.model.param_dtype,
        )


def make_learner(
    config: Config, model: Transformer, mesh: jax.sharding.Mesh, schedule: Schedule | None = None
) -> Learner:
    """The learner of a configuration; `mesh` may consist of devices that are only described.

    Args:
      config: the run.
      model: its policy.
      mesh: device mesh.
      schedule: updates per call; by default those of an iteration.

    Raises:
      ValueError: `train.frozen` names networks that there are not, or an objective wants more of
        the most probable tokens than there are tokens.
    """
    train, tokens = config.train, model.config.vocab_size
    schedule = schedule or Schedule(
        train.epochs, train.minibatches, train.microbatches, train.microbatch_tokens
    )
    algorithm = compose(
        model,
        config.algorithm_config(),
        config.sampling.temperature,
        keeps_reference=config.rewards.learned.samples > 0,
        critic_rests="critic" in train.frozen,
        layout=functools.partial(
            whole_layout, tokens=train.microbatch_tokens, pieces=train.prepare_pieces
        ),
        updates_once=train.epochs * train.minibatches == 1,
    )
    if algorithm.top > tokens:
        raise ValueError(
            f"config.objective.name is {config.objective.name!r}, which needs the {algorithm.top} "
            f"most probable tokens of every step; model.vocab_size is {tokens}, so it may be at "
            "most that many"
        )
    unfinished = None
    if config.partial.tokens > 0:
        sizes = (train.prompts, train.samples, config.sampling.max_new_tokens, algorithm.top)
        unfinished = first_unfinished(config.partial, *sizes)
    return Learner(
        model,
        algorithm,
        _optimizers(config, algorithm),
        schedule,
        mesh,
        max_skipped=train.max_skipped,
        behaviour_lag=train.behaviour_lag,
        unfinished=unfinished,
    )


def _optimizers(config: Config, algorithm: Algorithm) -> Optimizers:
    """One for each network that trains.

    Schedules end with the run. Where `critic.warmup_patience` ends the warm-up early, the policy's
    ends before, as no one knows when that will be.

    Raises:
      ValueError: `train.frozen` names a network that there is not, or all of them; or a frozen
        critic has a warm-up.
    """
    train, networks = config.train, algorithm.networks
    trained = [name for name in networks if name not in train.frozen]
    if not (set(train.frozen) <= set(networks) and trained):
        raise ValueError(
            f"config.train.frozen is {train.frozen}; it may name some of the networks, "
            f"{', '.join(networks)}, and must leave one that trains"
        )
    waits = config.critic.warmup if "critic" in networks else 0
    if waits > 0 and "critic" in train.frozen:
        raise ValueError(
            f"config.critic.warmup is {waits} and config.train.frozen names the critic; nothing "
            "would train during the warm-up, so it must be 0"
        )
    optimizers = {}
    for name in trained:
        of_critic = name == "critic"
        iterations = train.iterations - (0 if of_critic else waits)
        settings = config.critic_optimizer if of_critic else config.policy_optimizer
        steps = max(iterations, 0) * train.epochs * train.minibatches
        optimizers[name] = make_optimizer(settings, steps)
    return optimizers


def _check_items(
    config: Config, sampler: Sampler, task: Task, critic_items: list[Item], plan: Plan
) -> None:
    """Raises where prompts, given responses, the chat template or the rewards do not fit.

    Looks at all prompts of a file, at the first batch of a generator, and at those held out for
    the critic.
    """
    items = task.batch(0, max(config.train.prompts, config.warm_start.batch_size))
    sampler.prompts(task.everything() or items)
    sampler.prompts(critic_items)
    if critic_items and config.critic.name != "none":
        config.rewards.build(task.reward_range, critic_items)  # raises for a missing column
    if sampler.chat is not None:
        sampler.chat.check(items[0].conversation, items[0].answer or "0")
    if config.warm_start.steps > 0:
        task_demonstrations(sampler, items[: config.warm_start.batch_size])
    if plan.range is not None and "policy" not in config.train.frozen:
        raise ValueError(
            f"config.plan.name is {config.plan.name!r}, whose responses the policy did not sample, "
            f"and config.train.frozen {config.train.frozen}; it must name 'policy'"
        )
    if plan.range is not None and config.rewards != Rewards():
        raise ValueError(
            f"config.plan.name is {config.plan.name!r}, which gives rewards of its own, in "
            f"{plan.range}; the section rewards acts on those of the verifier alone, so it must be "
            "left at its defaults"
        )
    if plan.written is not None:
        pairs = [(i, text) for i in task.everything() or items for text in plan.written(i)]
        for start in range(0, len(pairs), _PIECE):
            given(sampler, *zip(*pairs[start : start + _PIECE], strict=True))


def task_demonstrations(sampler: Sampler, items: list[Item]) -> Rollout:
    """The items' own answers as a rollout of the run's shapes."""
    return given(sampler, items, [item.answer for item in items]).rollout


def check_division(config: Config, mesh: jax.sharding.Mesh) -> None:
    """Raises ValueError where the mesh's data axes do not divide a batch, naming both."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    train = config.train
    rows = train.prompts * train.samples // (train.minibatches * train.microbatches)
    sizes = {
        "train.prompts * samples / (minibatches * microbatches)": rows,
        "warm_start.batch_size": config.warm_start.batch_size,
    }
    for name, size in sizes.items():
        if size % parts:
            raise ValueError(f"config.{name} is {size}; mesh data * fsdp, {parts}, must divide it")
