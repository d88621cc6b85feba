"""What the noise of an iteration was, as metrics.

A response is right where its clean reward is at least the midpoint of the task's range, and it is
accepted where the reward that the learner sees is at least the midpoint of what the reward chain
makes of that range without noise and penalties.

The metrics are there where a link of the reward chain acts, but for one that makes ranks, and the
task declares a range. They count the responses that the plan kept; a rate of responses of which
there are none is left out. They take the verifier's verdicts for the truth.
"""

from collections import Counter

import numpy as np

from dfpo_jax.metric import Metric
from dfpo_jax.plans import Drawn
from dfpo_jax.rewards.interface import Read

_WHEN = "where a link of `rewards` acts on verdicts with a range, and there are such responses"
METRICS = (
    Metric(
        "noise/false_positive",
        "FP: share of the wrong responses that were accepted. The verifier's verdict counts as the "
        "truth.",
        healthy="Low; with `rewards.flip` alone, near `rewards.flip.false_positive`.",
        advice="Where noise is not set on purpose, mend the verifier. For known rates there are "
        "`advantage.channel` and `rewards.correction`; the latter changes nothing where all "
        "prompts have one pair of rates and `advantage.whiten` is on.",
        when=_WHEN,
    ),
    Metric(
        "noise/false_negative",
        "FN: share of the right responses that were not accepted.",
        healthy="Low; with `rewards.flip` alone, near `rewards.flip.false_negative`.",
        advice="As for `noise/false_positive`.",
        when=_WHEN,
    ),
    Metric(
        "noise/informedness",
        "J, how much the rewards still say about what is right.",
        formula="`J = 1 - FP - FN`",
        healthy="Above 0: 1 without errors, 0 for rewards that say nothing. At 0 nothing can be "
        "learned, and below 0 the policy gets worse (arXiv 2601.04411).",
        advice="Stop and mend the verifier where J is near 0. Where it is small, expect slow "
        "progress: take more responses per update (`train.prompts`, `train.samples`).",
        when=_WHEN,
    ),
    Metric(
        "noise/precision",
        "Share of the accepted responses that are right.",
        healthy="High, and not falling. It also depends on accuracy: with few right responses even "
        "a low FP makes most accepted responses wrong.",
        advice="Start from a better policy (`warm_start.steps`), or lower FP.",
        when=_WHEN,
    ),
    Metric(
        "noise/top_wrong_rate",
        "Share of all responses that are one wrong answer and were accepted, of the answer for "
        "which it is largest.",
        healthy="Not rising. Errors that hit all answers alike leave it at about FP times the "
        "share of the commonest wrong answer.",
        advice="Where it rises, the policy exploits one error of the verifier. Find the answer in "
        "samples.jsonl and refuse it in the verifier, or raise `objective.kl.coefficient`. The "
        "best checkpoint by held-out accuracy may lie before the rise.",
        when=_WHEN,
    ),
)


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
