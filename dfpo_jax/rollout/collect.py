"""One round of an iteration: responses are sampled, verified and rewarded."""

import functools
from collections import Counter
from collections.abc import Callable, Sequence

import jax
import numpy as np

from dfpo_jax.metric import Metric
from dfpo_jax.plans.interface import Drawn
from dfpo_jax.rewards.interface import Link, Scored
from dfpo_jax.rollout.demonstrations import demonstrations
from dfpo_jax.rollout.sampler import Sampler
from dfpo_jax.sharding import gather_rows, own_rows
from dfpo_jax.tasks.base import Item, Task, VerifierFailure
from dfpo_jax.types import Array, ArrayTree, Generation, Rollout

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
    low, high = task.reward_range or (-np.inf, np.inf)
    per_item, own = len(texts) // len(items), own_rows(len(texts))
    own_items = [items[row // per_item] for row in range(own.start, own.stop)]
    verdicts = task.judge(own_items, texts[own])
    rewards = gather_rows(np.array([v.reward for v in verdicts], np.float32), len(texts))
    sound = np.isfinite(rewards) & (low <= rewards) & (rewards <= high)
    if not sound.all():
        row = int(np.argmin(sound))
        allowed = "finite numbers"
        if task.reward_range is not None:
            allowed = f"between {low} and {high}, the task's range"
        prompt = items[row // per_item].prompt
        raise ValueError(
            f"task {task.name!r} gave reward {rewards[row]} for prompt {prompt!r} and response "
            f"{texts[row]!r}; rewards must be {allowed}"
        )
    if tally is not None:
        statuses = ("ok", "error", "timeout")
        codes = np.array([statuses.index(v.status) for v in verdicts], np.int32)
        codes = gather_rows(codes, len(texts))
        tally["verifier/errors"] += int((codes == 1).sum())
        tally["verifier/timeouts"] += int((codes == 2).sum())
        failed = int((codes > 0).sum())
        if failed > task.most_failures * len(texts):
            first = next((v.why for v in verdicts if v.status != "ok"), "seen on another host")
            raise VerifierFailure(
                f"the verifier of {task.name} failed on {failed} of {len(texts)} responses, more "
                f"than verifier.most_failures={task.most_failures} allows; the first: {first}"
            )
    return rewards


def as_scored(
    task: Task,
    items: Sequence[Item],
    texts: Sequence[str],
    mask: Array,
    clean: np.ndarray,
    step: int,
    round: int,
) -> Scored:
    """What links may read of responses; there are equally many per item, one after another.

    Args:
      task: judged them.
      items: prompts.
      texts: [B] responses.
      mask: [B, R] of their tokens.
      clean: [B] the verifier's rewards.
      step: iteration number.
      round: of the sampling plan.
    """
    per_item = len(texts) // len(items)
    return Scored(
        step=step,
        round=round,
        items=[item for item in items for _ in range(per_item)],
        texts=texts,
        lengths=np.asarray(mask).sum(axis=1),
        limit=mask.shape[1],
        clean=clean.copy(),
        range=task.reward_range,
        read=task.answer,
    )


def given(sampler: Sampler, items: Sequence[Item], texts: Sequence[str]) -> Drawn:
    """Responses that somebody wrote, one for each item: log-probabilities and rewards are 0.

    Args:
      sampler: encodes, with its numbers of prompt and response slots.
      items: prompts.
      texts: responses.

    Raises:
      ValueError: a prompt or a response does not fit; lengths are named.
    """
    rollout = demonstrations(
        sampler.tokenizer,
        items,
        prompt_length=sampler.prompt_length,
        response_length=sampler.config.max_new_tokens,
        chat=sampler.chat,
        eos_id=sampler.ends[0],
        truncate_prompts=sampler.truncate_prompts,
        begin=sampler.begin,
        texts=texts,
    )
    zeros = np.zeros(len(items), np.float32)
    return Drawn(rollout.replace(rewards=zeros, clean_rewards=zeros), list(texts), list(items))


def draw(
    sampler: Sampler,
    params: ArrayTree,
    task: Task,
    rewards: Link,
    items: Sequence[Item],
    key: Array,
    step: int,
    *,
    num_samples: int,
    round: int = 0,
    tally: Counter | None = None,
    states: Callable[[Rollout], np.ndarray] | None = None,
) -> Drawn:
    """Sample `num_samples` responses per item, verify them and apply the reward chain.

    Args:
      sampler: policy and tokenizer.
      params: policy parameters.
      task: gives the clean rewards, which stay beside the others for metrics.
      rewards: the chain, from the task's range of rewards on.
      items: N prompts.
      key: PRNG key of this iteration.
      step: iteration number; random links draw from it.
      num_samples: responses per item.
      round: of the sampling plan. A later round than 0 samples with `fold_in(key, round)`.
      tally: verifier failures and shortened prompts are added to it, under their metrics' names.
      states: what a link may read of the responses, see `Scored.states`; None where nothing can be.

    Returns:
      A host-side `Rollout` with N * num_samples rows, those of one prompt consecutive, its texts
      and the items.
    """
    if round > 0:
        key = jax.random.fold_in(key, round)
    prompts = sampler.prompts(items, tally)
    generation = sampler(params, *prompts, key, num_samples=num_samples)
    return judged(sampler, task, rewards, items, prompts, generation, step, round, tally, states)


def judged(
    sampler: Sampler,
    task: Task,
    rewards: Link,
    items: Sequence[Item],
    prompts: tuple[np.ndarray, np.ndarray],
    responses: Generation,
    step: int,
    round: int = 0,
    tally: Counter | None = None,
    states: Callable[[Rollout], np.ndarray] | None = None,
) -> Drawn:
    """`draw`, with responses that are sampled already: equally many per item.

    Args:
      sampler: gives the responses' texts.
      prompts: tokens and mask [N, P] of the items, from `Sampler.prompts`.
      responses: those of one item consecutive.
      task, rewards, items, step, round, tally, states: as `draw`.
    """
    num_samples = len(responses.tokens) // len(items)
    texts = sampler.texts(responses)
    clean = score(task, items, texts, tally)
    rollout = Rollout(
        prompt_tokens=np.repeat(prompts[0], num_samples, axis=0),
        prompt_mask=np.repeat(prompts[1], num_samples, axis=0),
        tokens=responses.tokens,
        mask=responses.mask,
        log_probs=responses.log_probs,
        truncated=responses.truncated,
        rewards=clean,
        clean_rewards=clean,
        groups=np.repeat(np.arange(len(items), dtype=np.int32), num_samples),
        top_tokens=responses.top_tokens,
        top_log_probs=responses.top_log_probs,
        states=responses.states,
        samples=num_samples,
    )
    scored = as_scored(task, items, texts, responses.mask, clean, step, round)
    if states is not None:
        scored = scored._replace(states=functools.partial(states, rollout))
    rollout = rollout.replace(rewards=rewards.apply(clean, scored))
    return Drawn(rollout, texts, items)
