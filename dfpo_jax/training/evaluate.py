"""Evaluation on clean held-out items: accuracy, pass@k, and the critic's calibration."""

import math
from collections.abc import Sequence

import numpy as np

from dfpo_jax import ops
from dfpo_jax.algorithms import Returns
from dfpo_jax.metric import Metric
from dfpo_jax.rollout.collect import respond
from dfpo_jax.rollout.sampler import Sampler
from dfpo_jax.tasks.base import Item, Task
from dfpo_jax.training.metrics import explained_variance
from dfpo_jax.types import Array, ArrayTree, Rollout

_EVERY = "every `evaluation.every` iterations and after the last one"
_CRITIC = f"{_EVERY}, with a critic, `evaluation.critic_prompts` above 0 and a plan that samples"
METRICS = (
    Metric(
        "eval/in_domain/accuracy",
        "Share of the clean held-out items of `task` that the policy solves at the first, greedy "
        "attempt. Noise in training rewards has no part in it.",
        healthy="It rises, and ends above row 0. Differences below about twice its standard "
        "error, sqrt(p (1 - p) / n) of n = `evaluation.prompts` items, mean little.",
        advice="Where `rollout/accuracy` rises and this does not, the policy has learned the "
        "training prompts: use more of them. Where it falls, look for the iteration at which "
        "`policy/kl_old` or `noise/top_wrong_rate` rose; the best checkpoint by this number is "
        "kept.",
        when=_EVERY + "; row 0 is before training",
    ),
    Metric(
        "eval/out_of_domain/accuracy",
        "The same on the held-out items of `out_of_domain`.",
        healthy="Neither at 0 nor at 1 before training, and not falling while the in-domain "
        "accuracy rises.",
        advice="Where it falls, the policy specialises: raise `objective.kl.coefficient`, or train "
        "on more kinds of prompts.",
        when=_EVERY + ", with `evaluation.out_of_domain`; row 0 is before training",
    ),
    Metric(
        "eval/critic/explained_variance",
        "How much of the returns of held-out responses the mean of the critic's law explains, over "
        "all their tokens. The rewards have the noise of training.",
        formula="`1 - Var(G - V) / Var(G)`, `G = discount^(tokens left) * reward`",
        healthy="Above 0, which a constant reaches, and rising. Below 1 even for the best critic: "
        "what the policy will sample and what noise does is not known before. "
        "`experiments/critics.py` estimates that ceiling.",
        advice="Near 0: give the critic a trunk of its own (`critic.trunk=own`), "
        "`critic.confidence`, a warm-up (`critic.warmup`) or a higher "
        "`critic_optimizer.learning_rate`; prompts that are all equally hard leave nothing to "
        "know. Far below `rollout/explained_variance`: the critic has learned the training "
        "prompts.",
        when=_CRITIC,
    ),
    Metric(
        "eval/critic/crps",
        "Continuous ranked probability score of the critic's law against the return that followed, "
        "mean over all tokens, in units of reward. It judges the whole law; of a critic with one "
        "number it is the mean absolute error.",
        formula="`mean |q - G| - 1/2 mean |q - q'|` over the quantiles q",
        healthy="Lower is better. Only a comparison says how good it is: with its earlier values, "
        "or with another critic on the same rewards. An exact law reaches half the mean difference "
        "of two returns of one state.",
        advice="Where the explained variance is good and this is not, the law is too wide or too "
        "narrow: look at the distributions in report.html, and read `critic/geometry`.",
        when=_CRITIC,
    ),
    Metric(
        "eval/critic/wasserstein1",
        "Wasserstein-1 distance, at the prompt, between the critic's law and the returns of "
        "`evaluation.critic_samples` responses, mean over prompts, in units of reward.",
        formula="area between both quantile functions",
        healthy="Falling. Not 0 even for the exact law, as few responses show a law roughly; more "
        "`evaluation.critic_samples` lower that part.",
        advice="As for `eval/critic/crps`.",
        when=_CRITIC,
    ),
    Metric(
        "eval/critic/spread",
        "How far the critic tells prompts apart: the standard deviation, over prompts, of the mean "
        "it predicts at the prompt, over that of the mean observed return.",
        formula="`std(V(s_0)) / std(mean G)`",
        healthy="0 where all prompts are the same to the critic. Near 1 with a high correlation; "
        "somewhat below is expected, as means of few responses differ by chance too.",
        advice="As for `eval/critic/correlation`.",
        when=_CRITIC + "; of two prompts or more",
    ),
    Metric(
        "eval/critic/correlation",
        "Correlation, over prompts, of the mean that the critic predicts at the prompt with the "
        "mean observed return. 0 where either is the same for all prompts.",
        healthy="Rising from 0, and 1 at most.",
        advice="Near 0 the critic knows nothing of the prompt: set `critic.pooled` and "
        "`critic.whiten`, or `critic.trunk=own`. Prompts that are all equally hard leave nothing "
        "to know; more `evaluation.critic_prompts` and `critic_samples` show it more exactly.",
        when=_CRITIC + "; of two prompts or more",
    ),
)


def greedy_accuracy(
    sampler: Sampler, params: ArrayTree, task: Task, items: Sequence[Item], key: Array
) -> tuple[float, list[str], list[bool]]:
    """Greedy pass@1 on clean rewards: accuracy in [0, 1], responses, and which are correct.

    Args:
      sampler: policy and tokenizer.
      params: policy parameters.
      task: judges the responses.
      items: evaluation items.
      key: unused by greedy decoding beyond shape.
    """
    found = respond(sampler, params, task, items, key, greedy=True)
    correct = found.rewards >= task.solved_at
    return float(np.mean(correct)), found.texts, correct.tolist()


def pass_at_k(
    sampler: Sampler,
    params: ArrayTree,
    task: Task,
    items: Sequence[Item],
    key: Array,
    *,
    samples: int,
    ks: Sequence[int],
) -> dict[int, float]:
    """Unbiased pass@k from `samples` responses per item, at the sampler's own settings.

    pass@k = mean over items of 1 - C(n - c, k) / C(n, k) with c of n responses correct
    (arXiv 2107.03374, section 2.1).

    Raises:
      ValueError: a k below 1 or above `samples`.
    """
    for k in ks:
        if not 1 <= k <= samples:
            raise ValueError(
                f"k is {k}; it must lie between 1 and the number of samples, {samples}"
            )
    found = respond(sampler, params, task, items, key, num_samples=samples)
    correct = found.rewards >= task.solved_at
    counts = correct.reshape(len(items), samples).sum(axis=1)
    return {
        k: float(
            np.mean([1.0 - math.comb(samples - int(c), k) / math.comb(samples, k) for c in counts])
        )
        for k in ks
    }


def observed_returns(rollout: Rollout, config: Returns) -> tuple[np.ndarray, np.ndarray]:
    """The return that followed each token, as the critic is to learn it, and where there is one.

    G_i = gamma^(valid tokens after i) * reward; rewards that objectives add to single tokens are
    left out. A response cut at the length limit counts only where that ends it (`overlong`
    "terminal"): otherwise the critic learns no return of it, and none is known.

    Args:
      rollout: [B] rewards.
      config: discount and overlong.

    Returns:
      Returns [B, R] float32 in raw reward units, and [B, R] bool.
    """
    mask, rewards = np.asarray(rollout.mask), np.asarray(rollout.rewards, np.float32)
    valid = mask > 0
    if config.overlong != "terminal":
        valid &= ~np.asarray(rollout.truncated)[:, None]
    after = mask.sum(axis=1, keepdims=True) - np.cumsum(mask, axis=1)
    return rewards[:, None] * np.float32(config.discount) ** after, valid


def critic_metrics(
    quantiles: np.ndarray, rollout: Rollout, samples: int, config: Returns
) -> dict[str, float]:
    """How well a critic's quantiles describe the noisy returns of a held-out rollout.

    Args:
      quantiles: [B, R, M] predicted quantiles of the return at every state, raw units.
      rollout: B = prompts * samples rows, those of one prompt consecutive.
      samples: responses per prompt.
      config: what a return is, see `observed_returns`.

    Returns:
      "explained_variance" of the mean over all valid tokens, "crps" averaged over the same (both
      against the return of the token's own response), and "wasserstein1" between prediction and
      the empirical law of the prompt's returns at the prompt's state, averaged over prompts. NaN
      where no response has a return. Of two or more prompts also "spread" and "correlation" of
      predicted with observed means at the prompt.
    """
    returns, valid = observed_returns(rollout, config)
    if not valid.any():
        return dict.fromkeys(("explained_variance", "crps", "wasserstein1"), math.nan)
    means = quantiles.mean(axis=-1)
    crps = np.asarray(ops.crps(quantiles, returns))
    laws = [
        (quantiles[first, 0], returns[rows, 0][valid[rows, 0]])
        for first in range(0, len(returns), samples)
        if valid[rows := slice(first, first + samples), 0].any()
    ]
    return {
        "explained_variance": float(explained_variance(means[valid], returns[valid])),
        "crps": float(crps[valid].mean()),
        "wasserstein1": float(np.mean([_wasserstein1(*both) for both in laws])),
        **_prompts_apart(np.array([[law.mean() for law in both] for both in laws], np.float64).T),
    }


def _prompts_apart(means: np.ndarray) -> dict[str, float]:
    """Spread and correlation of [2, prompts] predicted and observed means; {} for one prompt."""
    if means.shape[1] < 2:
        return {}
    predicted, observed = means.std(axis=1)
    known = predicted > 0.0 and observed > 0.0
    return {
        "spread": float(predicted / observed) if observed > 0.0 else math.nan,
        "correlation": float(np.corrcoef(means)[0, 1]) if known else 0.0,
    }


def _wasserstein1(first: np.ndarray, second: np.ndarray) -> float:
    """Between two empirical laws of any numbers of points."""
    common = math.lcm(len(first), len(second))
    both = [np.repeat(np.sort(x), common // len(x)) for x in (first, second)]
    return float(ops.wasserstein1(*both))
