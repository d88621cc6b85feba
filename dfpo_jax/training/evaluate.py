"""Evaluation on clean held-out items: accuracy, pass@k, and the critic's calibration."""

import math
from collections.abc import Sequence

import numpy as np

from dfpo_jax import ops
from dfpo_jax.rollout.rollout import Sampler, score
from dfpo_jax.tasks.base import Item, Task
from dfpo_jax.training.metrics import explained_variance
from dfpo_jax.types import Array, ArrayTree, Rollout


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
    tokens, mask = sampler.prompts(items)
    texts = sampler.texts(sampler(params, tokens, mask, key, greedy=True))
    correct = score(task, items, texts) >= task.solved_at
    return float(np.mean(correct)), texts, correct.tolist()


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
    tokens, mask = sampler.prompts(items)
    texts = sampler.texts(sampler(params, tokens, mask, key, num_samples=samples))
    correct = score(task, items, texts) >= task.solved_at
    counts = correct.reshape(len(items), samples).sum(axis=1)
    return {
        k: float(
            np.mean([1.0 - math.comb(samples - int(c), k) / math.comb(samples, k) for c in counts])
        )
        for k in ks
    }


def critic_metrics(quantiles: np.ndarray, rollout: Rollout, samples: int) -> dict[str, float]:
    """How well a critic's quantiles describe the noisy returns of a held-out rollout.

    Args:
      quantiles: [B, R, M] predicted quantiles of the return at every state, raw units.
      rollout: B = prompts * samples rows, those of one prompt consecutive.
      samples: responses per prompt.

    Returns:
      "explained_variance" of the mean over all valid tokens, "crps" averaged over the same (both
      against the return of the token's own response), and "wasserstein1" between prediction and
      the empirical law of `samples` returns at the prompt's state, averaged over prompts.
    """
    valid = rollout.mask > 0
    returns = np.broadcast_to(rollout.rewards[:, None], rollout.mask.shape)
    means = quantiles.mean(axis=-1)
    crps = np.asarray(ops.crps(quantiles, returns))
    observed = np.sort(rollout.rewards.reshape(-1, samples), axis=-1)
    predicted = quantiles[::samples, 0]
    common = math.lcm(samples, predicted.shape[-1])
    repeat = [np.repeat(x, common // x.shape[-1], axis=-1) for x in (predicted, observed)]
    return {
        "explained_variance": float(explained_variance(means[valid], returns[valid])),
        "crps": float(crps[valid].mean()),
        "wasserstein1": float(np.mean(ops.wasserstein1(*repeat))),
    }
