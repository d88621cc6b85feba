"""Rollouts of a fixed policy, drawn once and kept in files, and critics that learn from them."""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dfpo_jax.algorithms.warmup import METRIC
from dfpo_jax.rollout.collect import draw
from dfpo_jax.training.learner import Learner
from dfpo_jax.training.run import INIT, ROLLOUT, Run
from dfpo_jax.types import ArrayTree, Rollout

_DATA = "data.json"


def save_arrays(path: Path, tree: Any) -> None:
    """Write the leaves of a pytree; the file appears whole or not at all."""
    leaves = {str(n): np.asarray(x) for n, x in enumerate(jax.tree.leaves(tree))}
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        np.savez(file, **leaves)
    temporary.replace(path)


def load_arrays(path: Path, structure: Any) -> Any:
    """The pytree of this structure that `save_arrays` wrote.

    Raises:
      ValueError: the file is damaged or holds another structure; says what to do.
    """
    try:
        with np.load(path) as file:
            leaves = [file[str(n)] for n in range(len(file.files))]
        return jax.tree.unflatten(jax.tree.structure(structure), leaves)
    except Exception as error:  # numpy and zipfile raise many types
        raise ValueError(f"{path} is damaged ({error}); delete it to have it made again") from error


def kept(path: Path, structure: Any, make: Callable[[], Any]) -> Any:
    """What the file holds, or what `make` gives, which is kept in it."""
    if not path.exists():
        save_arrays(path, make())
    return load_arrays(path, structure)


def check_directory(directory: Path, wanted: dict[str, Any]) -> None:
    """See that what the directory holds was drawn with these settings, or note them in it.

    Raises:
      ValueError: it was drawn with others; names the first that differs.
    """
    path, wanted = directory / _DATA, json.loads(json.dumps(wanted))
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(wanted, indent=1))
    found = json.loads(path.read_text())
    for name in wanted:
        if found.get(name) != wanted[name]:
            raise ValueError(
                f"workdir {directory} holds rollouts whose {name} is {found.get(name)!r}; here it "
                f"is {wanted[name]!r}: name another --workdir"
            )


def digest(settings: Any) -> str:
    """A short name of settings that are equal as JSON."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def rollout_structure(samples: int) -> Rollout:
    """A rollout of the plan "uniform", for `load_arrays`."""
    return Rollout(*[0] * 9, samples=samples)


def rollout_at(run: Run, policy: ArrayTree, step: int, directory: Path) -> Rollout:
    """The training rollout of an iteration, drawn as a run draws it, or as it was drawn before."""
    train, key = run.config.train, jax.random.fold_in(jax.random.fold_in(run.key, ROLLOUT), step)

    def make():
        items = run.train_task.batch(step, train.prompts)
        inputs = (run.sampler, policy, run.train_task, run.rewards, items, key, step)
        return draw(*inputs, num_samples=train.samples).rollout

    return kept(directory / f"rollout_{step:05d}.npz", rollout_structure(train.samples), make)


def train_critic(
    run: Run, learner: Learner, policy: ArrayTree, rollouts: Callable[[int], Rollout], count: int
):
    """Train a critic on `count` rollouts, each seen once: its state, and what was measured.

    Args:
      run: whose seed and rewards are meant.
      learner: with a frozen policy.
      policy: its parameters.
      rollouts: the rollout of a step.
      count: of rollouts.

    Returns:
      The train state, and a dictionary: "seen" is the explained variance of rollouts that the
      critic has not learned from yet, over the last quarter of them; "milliseconds" of an
      iteration, targets and updates, without those of the first.
    """
    state = learner.start(jax.random.fold_in(run.key, INIT), policy)
    explained, seconds = [], []
    for step in range(count):
        rollout, start = rollouts(step), time.perf_counter()
        state = learner.observe(state, run.observed(rollout.rewards, step))
        state, means = learner.update(state, *learner.prepare(state, rollout))
        explained.append(means[METRIC])
        seconds.append(time.perf_counter() - start)
    late = explained[-max(1, count // 4) :]
    cost = float(np.median(seconds[1:] or seconds))
    return state, {"seen": float(np.mean(late)), "milliseconds": 1e3 * cost}
