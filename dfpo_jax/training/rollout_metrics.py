"""Metrics of an iteration's responses: rewards, accuracy, lengths."""

import numpy as np

from dfpo_jax.metric import Metric
from dfpo_jax.types import Rollout

METRICS = (
    Metric(
        "rollout/reward",
        "Mean reward of the responses as the learner sees it, after the whole reward chain, in "
        "units of reward.",
        healthy="It rises together with `rollout/clean_reward`.",
        advice="If it rises and the clean reward does not, the policy exploits errors of the "
        "verifier: read `noise/top_wrong_rate` and samples.jsonl, mend the verifier, or raise "
        "`objective.kl.coefficient`. If neither rises, read `rollout/zero_variance_groups`, "
        "`policy/entropy` and `policy/kl_old`.",
    ),
    Metric(
        "rollout/reward_std",
        "Standard deviation of the same rewards over all responses of the iteration, in units of "
        "reward.",
        formula="`sqrt(mean (r - mean r)^2)`",
        healthy="Above 0. For rewards of 0 and 1 with mean p it is sqrt(p (1 - p)), at most .5.",
        advice="At 0 there is nothing to learn from: the prompts are all too easy or all too hard. "
        "A value far above the verifier's own range comes from outliers: `critic.units=asinh` and "
        "`advantage.name=rank`, which the preset `dfpo` has, bear them; else set "
        "`rewards.clip.bound`.",
    ),
    Metric(
        "rollout/clean_reward",
        "Mean reward that the verifier gave, before noise and penalties, in units of reward.",
        healthy="It rises. The gap to `rollout/reward` is what the reward chain adds.",
        advice="If it falls while `rollout/reward` rises, see there.",
    ),
    Metric(
        "rollout/accuracy",
        "Share of the sampled responses that are correct.",
        formula="share of responses with a clean reward of at least `task.solved_at`",
        healthy="It rises. It is usually below `eval/in_domain/accuracy`, which decodes greedily.",
        advice="If it starts near 0, almost no response is rewarded: begin with easier prompts, a "
        "longer warm start (`warm_start.steps`) or more samples (`train.samples`).",
    ),
    Metric(
        "rollout/length",
        "Mean number of tokens that the policy sampled per response, with the one that ends it.",
        healthy="It changes slowly, and stays well below `sampling.max_new_tokens`.",
        advice="If it grows without accuracy, look for a reward of length, or a loss that favours "
        "long responses: set `rewards.length`, or `objective.aggregation=token_mean`. If it "
        "collapses, read samples.jsonl for a short answer that the verifier accepts.",
    ),
    Metric(
        "rollout/prompt_slots",
        "Tokens to which the iteration's prompts were padded.",
        healthy="One of `train.prompt_buckets`, or `train.prompt_length`, as always in the first "
        "iteration.",
        advice="Where it is far above the lengths of the prompts, `train.prompt_buckets` saves "
        "time.",
    ),
    Metric(
        "rollout/truncated",
        "Share of the responses that were cut at `sampling.max_new_tokens`.",
        healthy="Close to 0, and not rising.",
        advice="Raise `sampling.max_new_tokens`, set `rewards.length`, or choose what a cut "
        "response counts as with `returns.overlong`.",
    ),
    Metric(
        "rollout/zero_variance_groups",
        "Share of the prompts whose responses all have the same reward, as the learner sees it. "
        "They give an advantage relative to the group no signal.",
        healthy="Below 1/2.",
        advice="Use prompts of another difficulty, more responses per prompt (`train.samples`), "
        "`plan.name=refill` or `plan.name=elimination`, or an advantage that needs no group, such "
        "as `advantage.name=gae`.",
        when="with `train.samples` of 2 or more",
    ),
)


def rollout_metrics(rollout: Rollout, solved_at: float) -> dict[str, float]:
    """Rewards (noisy and clean), accuracy and lengths of a rollout, and its prompts' padding.

    Args:
      rollout: the iteration's responses.
      solved_at: clean reward from which a response is correct.
    """
    found = {
        "rollout/reward": float(rollout.rewards.mean()),
        "rollout/reward_std": float(rollout.rewards.std()),
        "rollout/clean_reward": float(rollout.clean_rewards.mean()),
        "rollout/accuracy": float((rollout.clean_rewards >= solved_at).mean()),
        "rollout/length": float(rollout.mask.sum(axis=1).mean()),
        "rollout/prompt_slots": float(rollout.prompt_tokens.shape[1]),
        "rollout/truncated": float(np.asarray(rollout.truncated).mean()),
    }
    if rollout.samples < 2:
        return found
    rewards = np.asarray(rollout.rewards).reshape(-1, rollout.samples)
    equal = (rewards == rewards[:, :1]).all(axis=1)
    return found | {"rollout/zero_variance_groups": float(equal.mean())}
