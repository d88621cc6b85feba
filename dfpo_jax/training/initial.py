"""What links of the reward chain make of a run's initial policy, kept in its work directory."""

import dataclasses
import functools
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dfpo_jax.plans import Drawn
from dfpo_jax.published_files import read_json
from dfpo_jax.rewards.interface import Initial, Scored, chain
from dfpo_jax.rollout.collect import draw
from dfpo_jax.rollout.verify import score
from dfpo_jax.tasks.base import Item
from dfpo_jax.training import distributed
from dfpo_jax.training.run import START, Run
from dfpo_jax.training.workdir import write_json
from dfpo_jax.types import Rollout, TrainState

FILE = "initial.json"


def with_rewards(run: Run, state: TrainState, workdir: Path, *, resumed: bool) -> Run:
    """The run, with the links that need the initial policy begun.

    A fresh run makes what they need and writes it; a resumed one reads it. In a run of several
    processes, the main process writes and reads, and all others get what it has.

    Args:
      run: from `build_run`.
      state: its first one, or that of the checkpoint it resumes from.
      workdir: the run's directory.
      resumed: whether it resumes.

    Raises:
      ValueError: the file is missing, damaged or of other settings, or a link cannot be made.
    """
    start = run.rewards.start
    if start is None:
        return run
    initial = _initial(run, state)
    if resumed:
        made = read(workdir / FILE, start.settings) if distributed.is_main() else None
    else:
        made = start.make(initial)
        if distributed.is_main():
            write(workdir / FILE, start.settings, made)
    made = distributed.gather(made if distributed.is_main() else None)[0]
    return dataclasses.replace(run, rewards=start.begin(made, initial))


def write(path: Path, settings: Any, made: Any) -> None:
    """Write what was made, with the settings of its making and a digest, atomically."""
    write_json(path, {"settings": settings, "made": made, "sha256": _digest(settings, made)})


def read(path: Path, settings: Any) -> Any:
    """What was made, from the file.

    Args:
      path: of the file.
      settings: that it must have been made with.

    Raises:
      ValueError: the file is missing, damaged or was made with other settings; says what to do.
    """
    advice = "restore it from a copy, or start the run again with another --workdir"
    if not path.exists():
        raise ValueError(
            f"{path} is missing, which config.rewards needs: the run was started without "
            f"{' and '.join(f'rewards.{name}' for name in settings)}, or the file was removed; "
            "set config.rewards as at the start, restore the file from a copy, or start the run "
            "again with another --workdir"
        )
    try:
        saved = read_json(path)
        old, made = saved["settings"], saved["made"]
        if saved["sha256"] != _digest(old, made):
            raise ValueError(f"{path} is not as it was written")
    except KeyError as error:
        raise ValueError(f"{path} has no {error}; {advice}") from None
    except ValueError as error:
        raise ValueError(f"{error}; {advice}") from None
    if old != json.loads(json.dumps(settings)):
        raise ValueError(
            f"a started run cannot change what its links made of the first policy: {path} was made "
            f"with config.rewards {old}, and they are {settings}; set them back, or start the run "
            "again with another --workdir"
        )
    return made


def _digest(settings: Any, made: Any) -> str:
    return hashlib.sha256(json.dumps([settings, made], sort_keys=True).encode()).hexdigest()


def _initial(run: Run, state: TrainState) -> Initial:
    """The policy of a state, which is the run's first one while nothing has trained."""
    return Initial(
        items=drawn_prompts(run),
        task=run.train_task,
        respond=functools.partial(_respond, run, state),
        judge=functools.partial(score, run.train_task),
    )


def drawn_prompts(run: Run) -> list[Item]:
    """The prompts that a run will draw, and those its critic is measured on, each text once.

    With the plan "uniform" they follow from the seed; other plans may draw any of a finite list.
    """
    config, task = run.config, run.train_task
    if config.plan.name == "uniform":
        drawn = []
        for step in range(config.train.iterations):
            spare = config.partial.spare if step == 0 else 0
            drawn += task.batch(step, config.train.prompts + spare)
    else:
        drawn = task.everything()
    if run.learner.has_critic:
        drawn += run.evaluations["in_domain"].items[: config.evaluation.critic_prompts]
    found: dict[str, Item] = {}
    for item in drawn:
        found.setdefault(item.prompt, item)
    return list(found.values())


def states_of(run: Run, state: TrainState) -> Callable[[Rollout], Any] | None:
    """Reads the initial policy's hidden states of responses; None where no copy of it is kept."""
    if state.reference is None:
        return None
    return functools.partial(run.learner.response_features, state)


def _respond(run: Run, state: TrainState, items: Sequence[Item], samples: int) -> Scored:
    """Sampled responses, by programs of the shapes that iterations have: nothing compiles twice.

    With partial rollouts iterations have others.
    """
    prompts, at_once = run.config.train.prompts, run.config.train.samples
    rounds = -(-samples // at_once)
    whole = [items[start : start + prompts] for start in range(0, len(items), prompts)]
    drawn = [
        _draw(run, state, [*piece, *piece[:1] * (prompts - len(piece))], round)
        for piece in whole
        for round in range(rounds)
    ]
    # Rows lie by piece, round, prompt and response; they shall lie by prompt and response.
    rows = np.arange(len(drawn) * prompts * at_once).reshape(-1, rounds, prompts, at_once)
    rows = rows.swapaxes(1, 2).reshape(-1, rounds * at_once)[: len(items), :samples].ravel()

    def joined(values):
        return np.concatenate(values)[rows] if values else np.zeros(0, np.float32)

    texts = [text for one in drawn for text in one.texts]
    return Scored(
        step=0,
        round=0,
        items=[item for item in items for _ in range(samples)],
        texts=[texts[row] for row in rows],
        lengths=joined([np.asarray(one.rollout.mask).sum(axis=1) for one in drawn]),
        limit=run.sampler.config.max_new_tokens,
        clean=joined([one.rollout.clean_rewards for one in drawn]),
        range=run.train_task.reward_range,
        read=run.train_task.answer,
        states=lambda: joined([run.learner.response_features(state, x.rollout) for x in drawn]),
    )


def _draw(run: Run, state: TrainState, items: Sequence[Item], round: int) -> Drawn:
    """One round, whose random numbers follow from the run's seed, the prompts and the round."""
    key = jax.random.fold_in(run.key, START)
    key = jax.random.fold_in(key, zlib.crc32("\0".join(item.prompt for item in items).encode()))
    policy, options = state.params["policy"], {"num_samples": run.config.train.samples}
    options |= {"round": round, "tally": Counter()}  # too many failures of the verifier raise
    return draw(run.sampler, policy, run.train_task, chain([]), items, key, 0, **options)
