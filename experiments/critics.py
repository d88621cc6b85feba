"""Critics on the states of a real language model, under a policy that stays as it is.

A fixed policy writes responses once; every critic learns from the same ones, with the same number
of updates and the same learning rates to choose from. The truth is what follows chosen states of
held-out responses: many continuations of each by the same policy, with the run's noise on rewards.

    python experiments/critics.py --config=configs/quickstart.py --workdir=runs/critics
    python experiments/critics.py --config=configs/quickstart.py --workdir=runs/critics --rows=all
    python experiments/critics.py --config=CONFIG --workdir=runs/critics --policy=runs/quickstart

The policy is that of the warm start, or the newest checkpoint of --policy. Rollouts, truth and
finished rows stay in the directory, so that the command goes on where it was stopped and more rows
cost only themselves.

Columns, per place in the response: `explained`, the share of the variance of returns that the mean
of the law explains; `ceiling`, the largest that any function of the states can reach; `share`, one
over the other; `crps` and `w1` of the law in reward units; `coverage`, the share of returns within
the 5 and 95 % quantiles; `ece`, the calibration error of the mean; `spread`, the deviation of
predicted means over states; `ms`, an iteration of the critic: its targets and updates. A critic is
shown at the learning rate with the highest explained variance on rollouts that it had not learned
from yet, so that the truth chooses nothing.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from _critics.data import (
    check_directory,
    digest,
    kept,
    rollout_at,
    rollout_structure,
    train_critic,
)
from _critics.rows import chosen, rows_of
from _critics.scores import scores
from _critics.truth import PLACES, Truth, make_truth
from absl import flags
from ml_collections import ConfigDict

from dfpo_jax.training import command_line
from dfpo_jax.training.config import parse_config
from dfpo_jax.training.json_lines import JsonLines, read_rows
from dfpo_jax.training.restore import read_run, restore_state
from dfpo_jax.training.run import Run, build_run, make_learner
from dfpo_jax.training.warm_start import first_policy
from dfpo_jax.types import ArrayTree, Rollout

FLAGS = flags.FLAGS
_COLUMNS = ("explained", "ceiling", "share", "crps", "w1", "coverage", "ece", "spread")


def define_flags() -> None:
    """Defines the flags; not at import, since flags are global and tests import this file."""
    flags.DEFINE_string("workdir", None, "Directory of rollouts, truth and rows.", required=True)
    flags.DEFINE_string("policy", None, "A run whose newest policy it is; default: warm start.")
    flags.DEFINE_list("rows", ["critics"], "critics, all, or names of rows.")
    flags.DEFINE_list("rates", ["3e-4", "1e-3", "3e-3"], "Learning rates that each critic tries.")
    flags.DEFINE_integer("rollouts", 60, "Rollouts to learn from.", lower_bound=1)
    flags.DEFINE_integer("prompts", 256, "Held-out prompts of the truth.", lower_bound=2)
    flags.DEFINE_integer("continuations", 32, "Of every chosen state.", lower_bound=2)
    flags.DEFINE_integer("seed", 0, "Of a critic's parameters and noise.", lower_bound=0)
    flags.DEFINE_string("json", None, "File for the rows of the table.")


def policy_evaluation(config: ConfigDict, **settings) -> ConfigDict:
    """The configuration with a fixed policy, whose critic alone learns, in units that all have.

    Args:
      config: the run's.
      settings: by dotted name.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.update_from_flattened_dict(
            {
                "algorithm": "dfpo",
                "objective.name": "clip",
                "plan.name": "uniform",
                "advantage.name": "gae",
                "critic.units": "affine",
                "train.frozen": ("policy",),
                "train.keep_states": False,  # files of rollouts hold none
                "critic.warmup": 0,
                "critic.warmup_patience": 0,
                **settings,
            }
        )
    return config


def build(config: ConfigDict) -> Run:
    """The run.

    Raises:
      ValueError: its settings are wrong, some responses would have no return, or the rewards
        would first have to be made.
    """
    parsed = parse_config(config)
    if parsed.returns.overlong != "terminal":
        raise ValueError(
            f"config.returns.overlong is {parsed.returns.overlong!r}; here it must be 'terminal', "
            "so that every response has a return"
        )
    run = build_run(parsed)
    if run.rewards.start is not None:
        raise ValueError(
            "config.rewards has votes or a learned reward model, which a run makes of its first "
            "policy; here both must be off"
        )
    return run


def policy_of(run: Run, source: str | None, directory: Path) -> ArrayTree:
    """The fixed policy, on the mesh: of a run, or a warm start that is kept in the directory."""
    learner = run.learner
    if source:
        return restore_state(run_like(run, source), source).params["policy"]
    shapes = learner.abstract_state.params["policy"]

    def make():
        found = first_policy(run)
        return learner.start(run.key).params["policy"] if found is None else found

    params = kept(directory / "policy.npz", shapes, make)
    return jax.device_put(params, learner.state_shardings.params["policy"])


def run_like(run: Run, source: str) -> Run:
    """The run of a directory.

    Raises:
      FileNotFoundError: no run there.
      ValueError: its model or tokenizer is another.
    """
    other = read_run(source)
    for name in ("model", "tokenizer"):
        here, there = getattr(run.config, name), getattr(other.config, name)
        if here != there:
            raise ValueError(f"policy is {source!r}, whose {name} is {there}; here it is {here}")
    return other


def measure(learner, state, truth: Truth) -> dict[str, dict[str, float]]:
    """The figures of a trained critic, by place and of all states."""
    law = np.asarray(learner.predict(state, truth.rollout), np.float64)
    law = law[truth.row, truth.index]
    figures = {"all": scores(law, truth.returns)}
    for number, place in enumerate(PLACES):
        here = truth.place == number
        if here.any():
            figures[place] = scores(law[here], truth.returns[here])
    return figures


@dataclasses.dataclass(frozen=True)
class Laboratory:
    """What all rows share.

    Attributes:
      directory: of rollouts and rows.
      run: gives tasks, sampler, rewards and mesh.
      policy: its parameters, which stay.
      truth: what follows the chosen states.
      rollouts: how many there are to learn from.
      seed: of a critic's parameters and noise.
    """

    directory: Path
    run: Run
    policy: ArrayTree
    truth: Truth
    rollouts: int
    seed: int

    def row(self, config: ConfigDict, rate: float) -> dict:
        """Train and measure one critic at one learning rate."""
        run = dataclasses.replace(self.run, key=jax.random.key(self.seed))
        config = policy_evaluation(config, **{"critic_optimizer.learning_rate": rate})
        config = dataclasses.replace(parse_config(config), model=run.config.model)
        learner = make_learner(config, run.sampler.model, run.learner.mesh)

        def rollouts(step: int) -> Rollout:
            return rollout_at(self.run, self.policy, step, self.directory)

        state, measured = train_critic(run, learner, self.policy, rollouts, self.rollouts)
        return {**measured, "places": measure(learner, state, self.truth)}

    def rows(self, variants: dict[str, ConfigDict], rates: list[float]) -> Iterator[dict]:
        """Every row at every rate, those that the directory holds as they stand there."""
        path = self.directory / "rows.jsonl"
        file = JsonLines(path)
        done = {row["key"]: row for row in read_rows(path)}
        for name, config in variants.items():
            for rate in rates:
                key = digest([config.to_json(default=str), rate, self.rollouts, self.seed])
                if key not in done:
                    row = {"step": len(done), "key": key, "row": name, "rate": rate}
                    done[key] = row | self.row(config, rate)
                    file.append(done[key])
                yield done[key]
        file.close()


def open_laboratory(
    config: ConfigDict,
    directory: Path,
    *,
    source: str | None,
    prompts: int,
    continuations: int,
    rollouts: int,
    seed: int,
) -> Laboratory:
    """Build the run, and draw or read its policy and its truth.

    Args:
      config: as `policy_evaluation` makes it.
      directory: where they are kept.
      source: a run whose newest policy it is, or None for a warm start.
      prompts: held-out prompts of the truth.
      continuations: of every chosen state.
      rollouts, seed: as in `Laboratory`.

    Raises:
      ValueError: the configuration is wrong, or the directory was drawn with another.
    """
    run = build(config)
    sections = ("task", "rewards", "model", "tokenizer", "sampling", "warm_start")
    settings = {name: dataclasses.asdict(getattr(run.config, name)) for name in sections}
    settings |= {name: getattr(run.config.train, name) for name in ("prompts", "samples")}
    settings |= {"policy": source, "held_out": prompts, "continuations": continuations}
    check_directory(directory, settings | {"seed": run.config.seed})
    policy = policy_of(run, source, directory)
    truth = kept(
        directory / "truth.npz",
        Truth(rollout_structure(1), 0, 0, 0, 0),
        lambda: make_truth(run, policy, prompts, continuations),
    )
    return Laboratory(directory, run, policy, truth, rollouts, seed)


def print_table(lines: list[dict]) -> None:
    """The chosen rate of every row, place by place."""
    for place in ("all", *PLACES):
        titles = "".join(f"{name:>10s}" for name in _COLUMNS)
        print(f"\n{place:24s}{titles}{'rate':>9s}{'ms':>7s}")
        for line in lines:
            if place in line["places"]:
                figures = line["places"][place]
                shown = "".join(f"{figures[name]:10.3f}" for name in _COLUMNS)
                print(f"{line['row']:24s}{shown}{line['rate']:9.0e}{line['milliseconds']:7.0f}")


def main():
    """Train the critics of the chosen rows and print how near to the truth they are."""
    with command_line.user_errors():
        config = _CONFIG.value
        base = policy_evaluation(config, **{"evaluation.prompts": FLAGS.prompts})
        table = rows_of(config)
        rates = [float(rate) for rate in FLAGS.rates]
        names = chosen(FLAGS.rows, table)
        variants = {name: policy_evaluation(base, **table[name]) for name in names}
        for variant in variants.values():
            parse_config(variant)
        laboratory = open_laboratory(
            base,
            Path(FLAGS.workdir),
            source=FLAGS.policy,
            prompts=FLAGS.prompts,
            continuations=FLAGS.continuations,
            rollouts=FLAGS.rollouts,
            seed=FLAGS.seed,
        )
    best = {}
    for row in laboratory.rows(variants, rates):
        name, figures = row["row"], row["places"]["all"]
        best[name] = max(best.get(name, row), row, key=lambda row: row["seen"])
        print(
            f"{name}, rate {row['rate']:g}: explained {figures['explained']:.3f} of "
            f"{figures['ceiling']:.3f}, crps {figures['crps']:.4f}",
            flush=True,
        )
    print_table(list(best.values()))
    if FLAGS.json:
        Path(FLAGS.json).write_text(json.dumps(list(best.values()), indent=1))


if __name__ == "__main__":
    _CONFIG = command_line.define_config()
    define_flags()
    command_line.run(main)
