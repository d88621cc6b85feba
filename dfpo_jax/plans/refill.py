"""DAPO's dynamic sampling: groups whose rewards are all equal are replaced."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dfpo_jax.metric import Metric
from dfpo_jax.plans.interface import Draw, Drawn, Plan, join, regroup
from dfpo_jax.settings import check_interval
from dfpo_jax.tasks.base import Item


@dataclass(frozen=True)
class Refill:
    """Rounds of new prompts until every group's rewards differ (arXiv 2503.14476, section 3.2).

    A group whose rewards, as the learner sees them, are all equal has no advantage. It is left out,
    and further rounds draw as many new prompts each as an iteration has. If the last round leaves
    too few groups, those without variance fill up, first drawn first. That bound and the fallback
    are ours: the paper draws on.

    Noise that differs by response, and a penalty on length, make rewards differ almost everywhere;
    then little is replaced.

    Attributes:
      most_rounds: of an iteration, >= 1.

    Raises:
      ValueError: the number is below 1.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "plan/rounds",
            "Rounds of prompts that the iteration drew.",
            healthy="Near 1 over `plan/kept_share`.",
            advice="At `plan.refill.most_rounds` the iteration was filled with groups without "
            "variance, see `plan/fallback_groups`. Each round costs as much as sampling without "
            "this plan.",
        ),
        Metric(
            "plan/kept_share",
            "Share of the drawn groups whose rewards differ.",
            healthy="Above 1 / `plan.refill.most_rounds`.",
            advice="Where it is small, use prompts of another difficulty or raise `train.samples`. "
            "At 1, the plan changes nothing; noise that differs by response does that.",
        ),
        Metric(
            "plan/fallback_groups",
            "Groups without variance that the iteration was filled up with.",
            healthy="0.",
            advice="As for `plan/kept_share`, or raise `plan.refill.most_rounds`.",
        ),
        Metric(
            "plan/drawn_reward",
            "Mean reward of all drawn responses, as the learner would see it; `rollout/reward` is "
            "that of those kept.",
            healthy="It rises. With this plan it is the measure of progress: groups that are all "
            "right are left out of `rollout/reward`.",
            advice="As for `rollout/reward`.",
        ),
    )
    most_rounds: int = 10

    def __post_init__(self):
        """Check the number of rounds."""
        check_interval(self, "most_rounds", low=1)

    def build(self, samples: int) -> Plan:
        """The plan for `samples` responses per prompt.

        Raises:
          ValueError: there is one, which has no variance.
        """
        if samples < 2:
            raise ValueError(
                f"plan.name is 'refill' and train.samples {samples}; a group needs at least 2 "
                "responses, as the rewards of one never differ"
            )
        return Plan(functools.partial(_collect, self.most_rounds), frozenset({"groups"}))


def _collect(
    most_rounds: int, draw: Draw, prompts: Callable[[int], list[Item]], count: int, samples: int
) -> tuple[Drawn, dict[str, float]]:
    rounds, differ = [], []
    while len(rounds) < most_rounds and sum(differ) < count:
        number = len(rounds)
        fresh = prompts(count * (number + 1))[count * number :]
        rounds.append(draw(fresh, samples, number))
        rewards = np.asarray(rounds[-1].rollout.rewards).reshape(count, samples)
        differ += (rewards != rewards[:, :1]).any(axis=1).tolist()
    kept = np.flatnonzero(differ)[:count]
    filled = np.flatnonzero(~np.array(differ))[: count - len(kept)]
    groups = np.concatenate([kept, filled])
    rows = (groups[:, None] * samples + np.arange(samples)).ravel()
    drawn = join(rounds)
    metrics = {
        "plan/rounds": float(len(rounds)),
        "plan/kept_share": float(np.mean(differ)),
        "plan/fallback_groups": float(len(filled)),
        "plan/drawn_reward": float(np.mean(drawn.rollout.rewards)),
    }
    return regroup(drawn, rows, [drawn.items[group] for group in groups]), metrics
