"""Responses are verified, by every process its share, and their rewards checked."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from dfpo_jax.metric import Metric
from dfpo_jax.sharding import gather_rows, own_rows
from dfpo_jax.tasks.base import Item, Task, Verdict, VerifierFailure

METRICS = (
    Metric(
        "verifier/errors",
        "How many of the responses that the iteration drew the verifier failed on, on all hosts. "
        "Such a response gets `task.verifier.on_failure`.",
        healthy="0, or few.",
        advice="Read why in the log. More than the share `task.verifier.most_failures` in a round "
        "stop the run.",
    ),
    Metric(
        "verifier/timeouts",
        "How many of them took the verifier longer than `task.verifier.timeout` seconds. They get "
        "`task.verifier.on_failure` too.",
        healthy="0, or few.",
        advice="Raise `task.verifier.timeout`, or `task.verifier.workers` where the machine has "
        "idle cores. They count towards `task.verifier.most_failures`.",
    ),
)


def score(
    task: Task, items: Sequence[Item], texts: Sequence[str], tally: Counter | None = None
) -> np.ndarray:
    """Verifier rewards [len(texts)] float32; `texts` holds equally many responses per item.

    Every process verifies its share of the responses and gets all rewards.

    Args:
      task: judges.
      items: prompts.
      texts: responses, those to one prompt consecutive.
      tally: "verifier/errors" and "verifier/timeouts" of all processes are added to it.

    Raises:
      ValueError: the verifier gave a reward that is not finite or outside the task's declared
        range; the item is named. Every process raises it, so that none waits for another.
      VerifierFailure: with a tally, where the verifier failed on more than `task.most_failures` of
        the responses, on every process too.
    """
    return rewards_of(task, items, [judge(task, items, texts)], tally)


class Judged(NamedTuple):
    """Responses and what their verifier said.

    Attributes:
      texts: equally many responses per item.
      verdicts: on this process's share of them, see `own_rows`.
    """

    texts: Sequence[str]
    verdicts: list[Verdict]


def judge(task: Task, items: Sequence[Item], texts: Sequence[str]) -> Judged:
    """Verify this process's share of the responses, equally many per item."""
    per_item, own = len(texts) // len(items), own_rows(len(texts))
    own_items = [items[row // per_item] for row in range(own.start, own.stop)]
    return Judged(texts, task.judge(own_items, texts[own]))


def rewards_of(
    task: Task, items: Sequence[Item], parts: Sequence[Judged], tally: Counter | None
) -> np.ndarray:
    """The rewards of all parts of the responses, gathered and checked; see `score`."""

    def gathered(read: Callable[[Verdict], float], dtype) -> np.ndarray:
        found = [
            gather_rows(np.array([read(v) for v in part.verdicts], dtype), len(part.texts))
            for part in parts
        ]
        return np.concatenate(found)

    texts = [text for part in parts for text in part.texts]
    low, high = task.reward_range or (-np.inf, np.inf)
    rewards = gathered(lambda verdict: verdict.reward, np.float32)
    sound = np.isfinite(rewards) & (low <= rewards) & (rewards <= high)
    if not sound.all():
        row = int(np.argmin(sound))
        allowed = "finite numbers"
        if task.reward_range is not None:
            allowed = f"between {low} and {high}, the task's range"
        prompt = items[row * len(items) // len(texts)].prompt
        raise ValueError(
            f"task {task.name!r} gave reward {rewards[row]} for prompt {prompt!r} and response "
            f"{texts[row]!r}; rewards must be {allowed}"
        )
    if tally is not None:
        statuses = ("ok", "error", "timeout")
        codes = gathered(lambda verdict: statuses.index(verdict.status), np.int32)
        tally["verifier/errors"] += int((codes == 1).sum())
        tally["verifier/timeouts"] += int((codes == 2).sum())
        failed = int((codes > 0).sum())
        if failed > task.most_failures * len(texts):
            verdicts = (v for part in parts for v in part.verdicts)
            first = next((v.why for v in verdicts if v.status != "ok"), "seen on another host")
            raise VerifierFailure(
                f"the verifier of {task.name} failed on {failed} of {len(texts)} responses, more "
                f"than verifier.most_failures={task.most_failures} allows; the first: {first}"
            )
    return rewards
