"""Print responses, before and after training side by side.

    python experiments/generate.py --workdir=runs/smollm2 --states=weights,newest
    python experiments/generate.py --weights=smollm2 --prompt="What is 2 + 3?"

States of a run are "weights" (the weights it started from), "newest" (the newest intact checkpoint)
or the iteration of a checkpoint. Prompts are held-out items of the run, or those of --prompt.
Responses are greedy unless --temperature is set.
"""

import dataclasses
import textwrap

import jax
from absl import flags

from dfpo_jax.models import pretrained
from dfpo_jax.rollout.sampling import SamplingConfig
from dfpo_jax.tasks import Item
from dfpo_jax.training import command_line
from dfpo_jax.training.config import parse_config
from dfpo_jax.training.restore import read_run, restore_state
from dfpo_jax.training.run import Run, build_run
from dfpo_jax.types import ArrayTree

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags; not at import, since flags are global and tests import this file."""
    flags.DEFINE_string("workdir", None, "Directory of a run.")
    flags.DEFINE_string("weights", None, "Published weights, instead of a run.")
    flags.DEFINE_list("states", ["newest"], "States of the run, one column each.")
    flags.DEFINE_multi_string("prompt", [], "A prompt; may be given several times.")
    flags.DEFINE_integer("items", 4, "Number of held-out items, if there is no --prompt.")
    flags.DEFINE_enum("set", "in_domain", ["in_domain", "out_of_domain"], "Which items.")
    flags.DEFINE_float("temperature", 0.0, "0 for greedy responses.")
    flags.DEFINE_integer("max_new_tokens", None, "Limit; the run's by default.")
    flags.DEFINE_integer("seed", 0, "Seed of the samples.")
    flags.DEFINE_bool("chat", True, "With --weights: use the chat template.")


def run_of_weights(source: str, chat: bool) -> Run:
    """A run for published weights that is never trained."""
    return build_run(
        parse_config(
            {
                "weights": {"source": source},
                "tokenizer": {"name": "weights"},
                "model": {"max_positions": 512},
                "task": {"chat": {"enabled": chat}},
                "train": {"prompt_length": 256, "prompts": 1, "samples": 2},
                "sampling": {"max_new_tokens": 128},
                "warm_start": {"batch_size": 1},
                "evaluation": {"prompts": 1, "out_of_domain": False},
                "mesh": {"fsdp": 1},
            }
        )
    )


def policy_of(run: Run, workdir: str | None, name: str) -> ArrayTree:
    """The policy's parameters in a state.

    Raises:
      FileNotFoundError: there is no such checkpoint.
      ValueError: there is no such state.
    """
    if name == "weights":
        section = run.config.weights
        if not section.source:
            raise ValueError("states has 'weights'; the run started from no published weights")
        options = section.all_overrides(run.config.model)
        return pretrained.load(section.source, mesh=run.learner.mesh, **options)[1]
    if name != "newest" and not name.isdigit():
        raise ValueError(f"state {name!r} must be weights, newest, or an iteration")
    step = None if name == "newest" else int(name)
    return restore_state(run, workdir, step).params["policy"]


def responses(
    run: Run, params: ArrayTree, items: list[Item], sampling: SamplingConfig, seed: int
) -> list[str]:
    """One response to each item."""
    longest = max(len(run.sampler.encode(item)) for item in items)
    sampler = dataclasses.replace(run.sampler, prompt_length=longest, config=sampling)
    tokens, mask = sampler.prompts(items)
    return sampler.texts(sampler(params, tokens, mask, jax.random.key(seed)))


def side_by_side(columns: dict[str, str], width: int = 100) -> str:
    """Texts in columns under their names."""
    each = width // len(columns) - 3
    cells = []
    for name, text in columns.items():
        lines = [line for part in text.splitlines() for line in textwrap.wrap(part, each) or [""]]
        cells.append([name, *lines])
    height = max(map(len, cells))
    rows = zip(*(cell + [""] * (height - len(cell)) for cell in cells), strict=True)
    return "\n".join(" | ".join(part.ljust(each) for part in row).rstrip() for row in rows)


def main():
    """Print prompts and responses."""
    with command_line.user_errors():
        if (FLAGS.workdir is None) == (FLAGS.weights is None):
            raise ValueError("give one of --workdir and --weights")
        states = FLAGS.states if FLAGS.workdir else ["weights"]
        run = read_run(FLAGS.workdir) if FLAGS.workdir else None
        run = run or run_of_weights(FLAGS.weights, FLAGS.chat)
        if FLAGS.set not in run.evaluations:
            raise ValueError(f"set is {FLAGS.set!r}; the run has {', '.join(run.evaluations)}")
        held_out = run.evaluations[FLAGS.set]
        run = dataclasses.replace(run, sampler=held_out.sampler)
        items = [Item(prompt, "") for prompt in FLAGS.prompt] or held_out.items[: FLAGS.items]
        sampling = dataclasses.replace(
            run.config.sampling,
            temperature=FLAGS.temperature,
            max_new_tokens=FLAGS.max_new_tokens or run.config.sampling.max_new_tokens,
        )
        texts = {}
        for name in states:
            params = policy_of(run, FLAGS.workdir, name)
            texts[name] = responses(run, params, items, sampling, FLAGS.seed)
    for row, item in enumerate(items):
        answer = f"   [answer: {item.answer}]" if item.answer else ""
        print(f"--- {item.prompt}{answer}")
        print(side_by_side({name: column[row] for name, column in texts.items()}) + "\n")


if __name__ == "__main__":
    define_flags()
    command_line.run(main)
