"""Reinforce-Ada: prompts are sampled in rounds until their pool of responses says enough."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dfpo_jax.metric import Metric
from dfpo_jax.plans.interface import Draw, Drawn, Plan, join, regroup
from dfpo_jax.settings import check_choice, check_interval
from dfpo_jax.tasks.base import Item

_LEAST_SHARE = 8  # a round draws for at least 1/8 of the prompts


@dataclass(frozen=True)
class Elimination:
    """Successive elimination of prompts (Reinforce-Ada, arXiv 2510.04996).

    A round draws `round_samples` responses to every prompt that is still active, into the prompt's
    pool. The prompt then leaves, and its pool is closed, as soon as `exit` says. Of every pool
    n = train.samples responses are kept, in the order in which they were drawn: the first n // 2
    that are correct and the first of the others up to n; where a class is short, the other one
    fills up. Pools of prompts that never leave are treated alike. `Rollout.baseline` is the mean
    reward of the whole pool.

    Sampling is compiled for four sizes at most: a round draws for all prompts of the iteration, a
    half, a quarter or an eighth of them. Where fewer are active, prompts that have left fill it up,
    and their further responses are dropped.

    Rewards are those that the learner sees. The published code has another way to keep responses,
    "positive_focused", which is not here.

    Attributes:
      exit: "balance" (at least n / 2 correct and n / 2 other responses) or "positive" (at least one
        correct response).
      round_samples: responses to a prompt in a round, at least train.samples.
      most_rounds: of an iteration, >= 1.
      correct_at: the reward from which a response counts as correct.

    Raises:
      ValueError: a field is outside its range.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "plan/rounds",
            "Rounds of responses that the iteration drew.",
            healthy="Below `plan.elimination.most_rounds`.",
            advice="At the most, some prompts never left: see `plan/exited_share`.",
        ),
        Metric(
            "plan/exited_share",
            "Share of the prompts whose pool met `plan.elimination.exit`.",
            healthy="High. The others are too hard or, with balance, too easy.",
            advice="Where it is small, raise `plan.elimination.most_rounds` or "
            "`plan.elimination.round_samples`, set `plan.elimination.exit=positive`, or use "
            "prompts of another difficulty.",
        ),
        Metric(
            "plan/pool_responses",
            "Mean number of responses in a prompt's pool, of which `train.samples` are kept.",
            healthy="Between `plan.elimination.round_samples` and `plan.elimination.most_rounds` "
            "times that.",
            advice="It is what sampling costs. Where it is near the most, see `plan/exited_share`.",
        ),
        Metric(
            "plan/drawn_reward",
            "Mean over prompts of the mean reward of their pools, as the learner sees it; "
            "`rollout/reward` is that of the responses kept.",
            healthy="It rises. With this plan it is the measure of progress: what is kept is "
            "balanced on purpose.",
            advice="As for `rollout/reward`.",
        ),
    )
    exit: str = "balance"
    round_samples: int = 8
    most_rounds: int = 4
    correct_at: float = 0.7

    def __post_init__(self):
        """Check every field."""
        check_choice(self, "exit", ("balance", "positive"))
        check_interval(self, "round_samples", low=2)
        check_interval(self, "most_rounds", low=1)
        check_interval(self, "correct_at", low=float("-inf"))

    def build(self, samples: int) -> Plan:
        """The plan for `samples` responses per prompt.

        Raises:
          ValueError: a round would draw fewer, or there is only one.
        """
        if not 2 <= samples <= self.round_samples:
            raise ValueError(
                f"plan.name is 'elimination' and train.samples {samples}; it must lie in [2, "
                f"plan.elimination.round_samples], and that is {self.round_samples}"
            )
        gives = frozenset({"groups", "pool"})
        return Plan(self._collect, gives, round_samples=self.round_samples)

    def _collect(
        self, draw: Draw, prompts: Callable[[int], list[Item]], count: int, samples: int
    ) -> tuple[Drawn, dict[str, float]]:
        items, active, rounds = prompts(count), list(range(count)), []
        pools, rewards = [[] for _ in items], [[] for _ in items]
        first = 0  # row of the round, once all are joined
        while active and len(rounds) < self.most_rounds:
            chosen = _padded(active, count)
            one = draw([items[i] for i in chosen], self.round_samples, len(rounds))
            found = np.asarray(one.rollout.rewards).reshape(len(chosen), -1)
            for place, prompt in enumerate(chosen[: len(active)]):
                start = first + place * self.round_samples
                pools[prompt] += range(start, start + self.round_samples)
                rewards[prompt] += found[place].tolist()
            rounds.append(one)
            first += found.size
            active = [i for i in active if not self._leaves(rewards[i], samples)]
        picked = [self._picked(found, samples) for found in rewards]
        rows = [pool[i] for pool, places in zip(pools, picked, strict=True) for i in places]
        drawn = regroup(join(rounds), rows, items)
        means = np.array([np.mean(found) for found in rewards], np.float32)
        rollout = drawn.rollout.replace(baseline=np.repeat(means, samples))
        return drawn._replace(rollout=rollout), {
            "plan/rounds": float(len(rounds)),
            "plan/exited_share": 1.0 - len(active) / count,
            "plan/pool_responses": float(np.mean([len(pool) for pool in pools])),
            "plan/drawn_reward": float(np.mean(means)),
        }

    def _correct(self, rewards: Sequence[float]) -> np.ndarray:
        """Which of the rewards are correct.

        Compared as float32, like the rewards: as float64, a reward of 0.7 would miss 0.7.
        """
        return np.asarray(rewards, np.float32) >= np.float32(self.correct_at)

    def _leaves(self, rewards: Sequence[float], samples: int) -> bool:
        """Whether a prompt with these rewards needs no further responses."""
        correct = int(np.sum(self._correct(rewards)))
        if self.exit == "positive":
            return correct >= 1
        return min(correct, len(rewards) - correct) >= samples / 2

    def _picked(self, rewards: Sequence[float], samples: int) -> list[int]:
        """Places in a pool of the responses that are kept."""
        correct = self._correct(rewards)
        right, wrong = np.flatnonzero(correct), np.flatnonzero(~correct)
        most = max(samples // 2, samples - len(wrong))
        right = right[:most]
        return sorted([*right.tolist(), *wrong[: samples - len(right)].tolist()])


def _padded(active: Sequence[int], count: int) -> list[int]:
    """The active prompts, and the first others up to the smallest size that holds them."""
    sizes = [-(-count // share) for share in (_LEAST_SHARE, 4, 2, 1)]
    size = next(n for n in sizes if n >= len(active))
    left = sorted(set(range(count)) - set(active))
    return [*active, *left[: size - len(active)]]
