"""The held-out items that a run is evaluated on."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from dfpo_jax.rollout.sampler import Sampler
from dfpo_jax.tasks.base import Item, Task
from dfpo_jax.training.config import Config, TaskConfig
from dfpo_jax.training.run_tokens import chat_of


@dataclass(frozen=True)
class EvaluationSet:
    """Fixed held-out items, with a sampler whose prompt slots fit the longest of all sets."""

    task: Task
    items: list[Item]
    sampler: Sampler


def evaluation_sets(config: Config, sampler: Sampler) -> dict[str, EvaluationSet]:
    """By name. Prompts of all sets have equally many slots, so that one program samples for them.

    Args:
      config: the run.
      sampler: of the training task.

    Raises:
      ValueError: a held-out prompt leaves no room for a response.
    """
    sections = {"in_domain": config.task}
    if config.evaluation.out_of_domain:
        sections["out_of_domain"] = config.out_of_domain
    sets = {name: _evaluation_set(section, config, sampler) for name, section in sections.items()}
    longest = max(x.sampler.prompt_length for x in sets.values())

    def fitted(own: Sampler) -> Sampler:
        length = min(longest, sampler.prompt_length) if own.truncate_prompts else longest
        return replace(own, prompt_length=length)

    return {name: replace(x, sampler=fitted(x.sampler)) for name, x in sets.items()}


def accepts(section: TaskConfig, sampler: Sampler) -> Callable[[Item], bool] | None:
    """Which items a task keeps: those whose prompt fits, where it skips the others."""
    if section.overlong != "skip":
        return None
    return lambda item: len(sampler.encode(item)) <= sampler.prompt_length


def _evaluation_set(section: TaskConfig, config: Config, sampler: Sampler) -> EvaluationSet:
    shorten = section.overlong == "truncate"
    chat = chat_of(section, sampler.tokenizer)
    sampler = replace(sampler, chat=chat, truncate_prompts=shorten, stop=section.stop)
    task = section.build("held_out", accepts(section, sampler))
    items = task.items(config.evaluation.prompts)
    longest = max(1, *(len(sampler.encode(item)) for item in items))
    if shorten:
        longest = min(longest, sampler.prompt_length)
    limit = config.model.max_positions - config.sampling.max_new_tokens
    if longest > limit:
        raise ValueError(
            f"a held-out prompt of {task.name} has {longest} tokens; config.model.max_positions - "
            f"sampling.max_new_tokens leaves room for {limit}"
        )
    return EvaluationSet(task, items, replace(sampler, prompt_length=longest, prompt_buckets=()))
