"""One round of an iteration: responses are sampled, verified and rewarded."""

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np

from dfpo_jax.plans.interface import Drawn
from dfpo_jax.rewards.interface import Link, Scored
from dfpo_jax.rollout.demonstrations import demonstrations
from dfpo_jax.rollout.sampler import Sampler
from dfpo_jax.rollout.verify import Judged, judge, rewards_of
from dfpo_jax.tasks.base import Item, Task
from dfpo_jax.types import Array, ArrayTree, Generation, Rollout


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


def _one_beside_the_next(calls: Sequence[int], make: Callable, read: Callable) -> tuple[list, list]:
    """[make(i)] and [read(i, make(i))] of all i, reading one while the next is made.

    What `read` raises is raised when all are made. A single one is read in the calling thread, as
    there is nothing to do beside it.
    """
    if len(calls) == 1:
        made = make(calls[0])
        return [made], [read(calls[0], made)]
    made, reading = [], []
    with ThreadPoolExecutor(1, thread_name_prefix="verifier") as thread:
        for i in calls:
            made.append(make(i))
            reading.append(thread.submit(read, i, made[-1]))
    return made, [one.result() for one in reading]


class Responses(NamedTuple):
    """Sampled and verified responses, those of one item consecutive.

    Attributes:
      prompts: tokens and mask [N, P] of the items.
      generation: B = N * samples rows.
      texts: [B].
      rewards: [B] the verifier's.
    """

    prompts: tuple[np.ndarray, np.ndarray]
    generation: Generation
    texts: list[str]
    rewards: np.ndarray


def respond(
    sampler: Sampler,
    params: ArrayTree,
    task: Task,
    items: Sequence[Item],
    key: Array,
    *,
    num_samples: int = 1,
    greedy: bool = False,
    tally: Counter | None = None,
    shape: tuple[int, int] | None = None,
) -> Responses:
    """Sample `num_samples` responses per item; verify a part of them beside sampling the next.

    Args:
      sampler: policy and tokenizer; `sampling.parts` says how many parts.
      params: policy parameters.
      task: verifies.
      items: N prompts.
      key: PRNG key.
      num_samples: responses per item.
      greedy: whether the most probable tokens are taken.
      tally: as `score` and `Sampler.prompts`.
      shape: prompts and responses per prompt of another call, whose program is used where its
        number of responses divides `num_samples`. It changes no response.

    Raises:
      As `score`, also for what a verifier did beside sampling.
    """
    prompts = sampler.prompts(items, tally)
    size, each = sampler.config.part_of(len(items)), num_samples
    if shape is not None and num_samples % shape[1] == 0:
        size, each = shape
    repeats = num_samples // each
    tokens, mask = (np.repeat(x, repeats, axis=0) for x in prompts)
    repeated = [item for item in items for _ in range(repeats)]

    def sample(first: int) -> Generation:
        rows = slice(first, first + size)
        options = {"num_samples": each, "greedy": greedy, "first": first, "least": size}
        return sampler(params, tokens[rows], mask[rows], key, **options)

    def verify(first: int, generation: Generation) -> Judged:
        return judge(task, repeated[first : first + size], sampler.texts(generation))

    found, parts = _one_beside_the_next(range(0, len(repeated), size), sample, verify)
    generation = found[0]
    if len(found) > 1:
        generation = jax.tree.map(lambda *x: np.concatenate(x), *found)
    texts = [text for part in parts for text in part.texts]
    return Responses(prompts, generation, texts, rewards_of(task, items, parts, tally))


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
    shape: tuple[int, int] | None = None,
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
      shape: as `respond`.

    Returns:
      A host-side `Rollout` with N * num_samples rows, those of one prompt consecutive, its texts
      and the items.
    """
    if round > 0:
        key = jax.random.fold_in(key, round)
    options = {"num_samples": num_samples, "tally": tally, "shape": shape}
    found = respond(sampler, params, task, items, key, **options)
    return rewarded(task, rewards, items, found, step, round, states)


def rewarded(
    task: Task,
    rewards: Link,
    items: Sequence[Item],
    found: Responses,
    step: int,
    round: int = 0,
    states: Callable[[Rollout], np.ndarray] | None = None,
) -> Drawn:
    """`draw`, with responses that are sampled and verified already.

    Args:
      found: equally many per item, those of one item consecutive.
      task, rewards, items, step, round, states: as `draw`.
    """
    prompts, generation, texts, clean = found
    num_samples = len(texts) // len(items)
    rollout = Rollout(
        prompt_tokens=np.repeat(prompts[0], num_samples, axis=0),
        prompt_mask=np.repeat(prompts[1], num_samples, axis=0),
        tokens=generation.tokens,
        mask=generation.mask,
        log_probs=generation.log_probs,
        truncated=generation.truncated,
        rewards=clean,
        clean_rewards=clean,
        groups=np.repeat(np.arange(len(items), dtype=np.int32), num_samples),
        top_tokens=generation.top_tokens,
        top_log_probs=generation.top_log_probs,
        states=generation.states,
        samples=num_samples,
    )
    scored = as_scored(task, items, texts, generation.mask, clean, step, round)
    if states is not None:
        scored = scored._replace(states=functools.partial(states, rollout))
    rollout = rollout.replace(rewards=rewards.apply(clean, scored))
    return Drawn(rollout, texts, items)
