"""What the noise of an iteration was, as metrics.

A response is right where its clean reward is at least the midpoint of the task's range, and it is
accepted where the reward that the learner sees is at least the midpoint of what the reward chain
makes of that range without noise and penalties.

| metric | what | healthy |
|---|---|---|
| noise/false_positive | FP: share of the wrong responses that were accepted | low |
| noise/false_negative | FN: share of the right responses that were not accepted | low |
| noise/informedness | J = 1 - FP - FN; 1 without errors, 0 for a blind verifier | above 0 |
| noise/precision | share of the accepted responses that are right | high |
| noise/top_wrong_rate | share of all responses that are one wrong answer, accepted | not rising |
| rollout/zero_variance_groups | share of the prompts whose responses have one reward | below 1/2 |

At J = 0 nothing can be learned, and below 0 the policy gets worse (arXiv 2601.04411).
`noise/top_wrong_rate` is that of the answer for which it is largest; where it rises, the policy
exploits one error of the verifier. Groups whose rewards, as the learner sees them, are all equal
have no advantage relative to the group.

The first five are there where a link of the reward chain acts, but for one that makes ranks, and
the task declares a range. They count the responses that the plan kept; a rate of responses of which
there are none is left out. They take the verifier's verdicts for the truth. The last one is there
with two or more responses to a prompt.
"""

from collections import Counter

import numpy as np

from dfpo_jax.plans import Drawn
from dfpo_jax.rewards.interface import Read


def noise_metrics(drawn: Drawn, clean_middle: float, middle: float, read: Read) -> dict[str, float]:
    """Rates of the errors in an iteration's rewards; see the module.

    Args:
      drawn: the iteration's responses.
      clean_middle: clean reward from which a response is right.
      middle: reward from which a response is accepted.
      read: (item, text) -> the answer in a response, or None; one without an answer is counted as
        the answer None.

    Returns:
      Finite numbers by name, without those that are not defined.
    """
    rollout = drawn.rollout
    right = np.asarray(rollout.clean_rewards) >= np.float32(clean_middle)
    accepted = np.asarray(rollout.rewards) >= np.float32(middle)
    found = {}
    if not right.all():
        found["noise/false_positive"] = float(accepted[~right].mean())
    if right.any():
        found["noise/false_negative"] = float(1.0 - accepted[right].mean())
    if len(found) == 2:
        found["noise/informedness"] = 1.0 - sum(found.values())
    if accepted.any():
        found["noise/precision"] = float(right[accepted].mean())
    wrong = Counter(
        read(drawn.items[int(rollout.groups[row])], drawn.texts[row])
        for row in np.flatnonzero(accepted & ~right)
    )
    found["noise/top_wrong_rate"] = max(wrong.values(), default=0) / max(len(right), 1)
    return found


def zero_variance_groups(drawn: Drawn) -> dict[str, float]:
    """The metric of that name; {} where a prompt has one response."""
    rollout = drawn.rollout
    if rollout.samples < 2:
        return {}
    rewards = np.asarray(rollout.rewards).reshape(-1, rollout.samples)
    equal = (rewards == rewards[:, :1]).all(axis=1)
    return {"rollout/zero_variance_groups": float(equal.mean())}
