"""Partial rollouts: an iteration goes on without the responses that take longest.

After Kimi k1.5 (arXiv 2501.12599, section 2.6.2). Responses gain at most so many tokens in a round
of decoding. An iteration decodes until as many prompts as it needs have all their responses; what
is unfinished then waits, and gains its next tokens in the next iteration, from the policy that
samples there. More prompts are begun than an iteration needs, so that there are finished ones to
take. Nothing is thrown away before the run ends: a prompt whose responses are long comes later.
Rounds have a number of tokens, not seconds, so that a resumed run stops where any other does.
"""

import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import numpy as np

from dfpo_jax.metric import Metric
from dfpo_jax.rollout.sampler import Sampler
from dfpo_jax.settings import check_interval
from dfpo_jax.tasks.base import Item
from dfpo_jax.tokenizers import left_pad
from dfpo_jax.types import Array, ArrayTree, Generation, Unfinished

_GO_ON = 2**30  # folded into an iteration's key, beside the rounds of plans
_PART = 4  # going on is compiled for all rows and a quarter, and for 1, 4, 16, ... older rounds


METRICS = (
    Metric(
        "partial/rounds",
        "Rounds of decoding of the iteration, of at most `partial.tokens` tokens each.",
        healthy="1 or 2: then no iteration waits for long responses.",
        advice="Where it comes near `sampling.max_new_tokens / partial.tokens`, raise "
        "`partial.spare`.",
        when="with `partial.tokens`",
    ),
    Metric(
        "partial/unfinished",
        "Responses that the iteration leaves unfinished, to go on in the next one.",
        healthy="Above 0, and at most `partial.spare * train.samples`.",
        advice="At 0 the iteration waited for all responses: raise `partial.spare`, or do without.",
        when="with `partial.tokens`",
    ),
    Metric(
        "partial/older_tokens",
        "Share of the tokens of the iteration's responses that earlier iterations sampled.",
        healthy="Near `partial.spare / train.prompts`, or below.",
        advice="Where it is large, responses come from old policies: lower `partial.spare`, "
        "set `objective.importance_cap`, or lower `policy_optimizer.learning_rate`.",
        when="with `partial.tokens`",
    ),
    Metric(
        "partial/cut",
        "Responses of the iteration that are taken unfinished after `partial.rounds`, and count as "
        "truncated.",
        healthy="0, or few.",
        advice="Where it stays high, policies learn from responses without an end: raise "
        "`partial.rounds` or `partial.spare`.",
        when="with `partial.tokens`",
    ),
)


@dataclass(frozen=True)
class Partial:
    """Partial rollouts, with the plan "uniform".

    A response has tokens of several policies, each with the log-probability that it was drawn
    with: set `objective.importance_cap`, as with `train.behaviour_lag`. It is at most
    `sampling.max_new_tokens / tokens` iterations old, and as many more as its group waits behind
    others that have ended.

    Attributes:
      tokens: 0 for none, or the most tokens that a response gains in a round; it must divide
        `sampling.max_new_tokens`.
      spare: prompts that are in flight beyond the `train.prompts` of an iteration: the longest
        responses to so many prompts are not waited for.
      rounds: a timeout: the most rounds of an iteration, 0 for as many as it takes. Where too few
        prompts are finished by then, those longest in flight are taken as they are, and their
        unfinished responses are truncated ones, as at the length limit.

    Raises:
      ValueError: one is below 0, `tokens` or `spare` alone is 0, or both are and `rounds` is not.
    """

    tokens: int = 0
    spare: int = 0
    rounds: int = 0

    def __post_init__(self):
        """Check that all that is needed is there, or nothing."""
        check_interval(self, "tokens", "spare", "rounds", low=0)
        if (self.tokens == 0) != (self.spare == 0):
            raise ValueError(
                f"tokens is {self.tokens} and spare {self.spare}; both must be 0, or both at least "
                "1: without a spare prompt every iteration waits for all responses"
            )
        if self.rounds > 0 and self.tokens == 0:
            raise ValueError(f"rounds is {self.rounds} and tokens 0; without tokens it must be 0")


class Taken(NamedTuple):
    """What an iteration takes.

    Attributes:
      items: N prompts, the longest in flight first.
      responses: to them, those of one prompt consecutive.
      unfinished: what is left.
      older: share of the responses' tokens that earlier iterations sampled.
      rounds: of decoding.
    """

    items: list[Item]
    responses: Generation
    unfinished: Unfinished
    older: float
    rounds: int = 0

    @property
    def metrics(self) -> dict[str, float]:
        """By name."""
        return {
            "partial/rounds": float(self.rounds),
            "partial/unfinished": float(_open(self.unfinished.responses).sum()),
            "partial/older_tokens": float(self.older),
            "partial/cut": float(_open(self.responses).sum()),
        }


def first_unfinished(
    partial: Partial, prompts: int, samples: int, limit: int, top: int
) -> Unfinished:
    """Where a run begins: its first iteration draws the spare prompts too, behind its own.

    Args:
      partial: with spare prompts.
      prompts: that an iteration takes.
      samples: responses per prompt.
      limit: R, tokens of a response.
      top: K of the most probable tokens, 0 for none.
    """
    rows, numbers = partial.spare * samples, np.arange(prompts, prompts + partial.spare)
    return Unfinished(
        prompts=np.stack([0 * numbers, numbers, 0 * numbers], axis=1).astype(np.int32),
        responses=Generation(
            tokens=np.zeros((rows, limit), np.int32),
            mask=np.zeros((rows, limit), np.float32),
            log_probs=np.zeros((rows, limit), np.float32),
            truncated=np.ones(rows, bool),
            top_tokens=np.zeros((rows, limit, top), np.int32) if top else None,
            top_log_probs=np.zeros((rows, limit, top), np.float32) if top else None,
        ),
    )


def take(
    sampler: Sampler,
    params: ArrayTree,
    batch: Callable[[int, int], list[Item]],
    unfinished: Unfinished,
    key: Array,
    step: int,
    *,
    tokens: int,
    prompts: int,
    samples: int,
    most_rounds: int = 0,
    tally: Counter | None = None,
) -> Taken:
    """Begin an iteration's prompts, go on with the unfinished ones, and take what is finished.

    A pure function, so that a resumed run repeats it. The first iteration's going on has the
    largest shapes of the run, so that what does not fit the devices is refused then.

    Args:
      sampler: policy and tokenizer.
      params: policy parameters.
      batch: `Task.batch`.
      unfinished: left by the iteration before.
      key: PRNG key of the iteration.
      step: its number.
      tokens: that a response gains in a round at most.
      prompts: N, how many the iteration begins and takes.
      samples: responses per prompt.
      most_rounds: after which prompts are taken as they are; 0 for none.
      tally: shortened prompts are added to it, under their metric's name.

    Raises:
      MemoryError: a program does not fit the devices; nothing of it has run.
      ValueError: the task gives another prompt than the one whose responses are unfinished.
    """
    old = _drawn(batch, unfinished.prompts)
    new = batch(step, prompts)
    items = [*old, *new]
    one_round = replace(sampler, config=replace(sampler.config, max_new_tokens=tokens))
    theirs = sampler.prompts(old, tally if step == 0 else None)  # later they are counted already
    ours = sampler.prompts(new, tally)
    ids = [row[kept > 0] for both in (theirs, ours) for row, kept in zip(*both, strict=True)]
    begun = _widened(
        one_round(params, *ours, key, num_samples=samples), sampler.config.max_new_tokens
    )
    pool = jax.tree.map(lambda *x: np.concatenate(x), unfinished.responses, begun)
    before = pool.mask.sum(axis=1)
    before[len(old) * samples :] = 0.0

    def more(pool: Generation, groups: np.ndarray, number: int) -> Generation:
        rows = np.flatnonzero(_open(pool) & np.repeat(groups, samples))
        if len(rows) == 0 and not (step == 0 and number == 0):
            return pool
        fold = jax.random.fold_in(jax.random.fold_in(key, _GO_ON), number)
        own = [ids[row // samples] for row in rows]
        return sampler.stopped(_gone_on(one_round, params, own, pool, rows, fold, step == 0))

    pool, rounds = more(pool, np.arange(len(items)) < len(old), 0), 1
    while np.sum(_done(pool, samples)) < prompts and rounds != most_rounds:
        pool, rounds = more(pool, np.full(len(items), True), rounds), rounds + 1
    places = [*unfinished.prompts[:, :2].tolist(), *((step, n) for n in range(prompts))]
    pad = sampler.tokenizer.pad_token_id
    return _first_done(pool, items, places, prompts, pad, before)._replace(rounds=rounds)


def _first_done(
    pool: Generation,
    items: list[Item],
    places: Sequence[tuple[int, int]],
    count: int,
    pad: int,
    before: np.ndarray,
) -> Taken:
    """The first prompts of which all responses are finished, and what is left.

    Where they are too few, the first of the others too.

    Args:
      pool: all responses in flight.
      items: their prompts.
      places: of each, the iteration that drew it and its number there.
      count: how many to take.
      pad: fills what is behind the responses.
      before: [B] tokens of earlier iterations.
    """
    samples = len(pool.tokens) // len(items)
    done = _done(pool, samples)
    taken = np.sort(np.argsort(~done, stable=True)[:count])
    left = np.setdiff1d(np.arange(len(items)), taken)
    ours, theirs = (_rows(pool, groups, samples) for groups in (taken, left))
    ours = ours.replace(tokens=np.where(ours.mask > 0, ours.tokens, pad))
    origins = [(*places[group], _checksum(items[group])) for group in left]
    return Taken(
        items=[items[group] for group in taken],
        responses=ours,
        unfinished=Unfinished(np.array(origins, np.int32), theirs),
        older=before.reshape(-1, samples)[taken].sum() / max(ours.mask.sum(), 1.0),
    )


def _drawn(batch: Callable[[int, int], list[Item]], origins: np.ndarray) -> list[Item]:
    """The prompts of earlier iterations, by iteration and number."""
    most, found = {}, []
    for iteration, number, _ in origins.tolist():
        most[iteration] = max(most.get(iteration, 0), number + 1)
    batches = {iteration: batch(iteration, size) for iteration, size in most.items()}
    for iteration, number, known in origins.tolist():
        found.append(batches[iteration][number])
        if known not in (0, _checksum(found[-1])):
            raise ValueError(
                f"prompt {number} of iteration {iteration} has unfinished responses and is now "
                f"another, {found[-1].prompt!r}; resume with the task, its data and the "
                "train.prompt_length that the run was started with"
            )
    return found


def _checksum(item: Item) -> int:
    """Of a prompt and its answer, above 0."""
    text = repr((item.prompt, item.answer, item.messages))
    return zlib.crc32(text.encode()) % (2**31 - 1) + 1


def _gone_on(
    sampler: Sampler,
    params: ArrayTree,
    prompts: Sequence[np.ndarray],
    pool: Generation,
    rows: np.ndarray,
    key: Array,
    largest: bool,
) -> Generation:
    """The pool, with a round's tokens more in these rows, which have these prompts' tokens.

    The policy reads prompt and response anew, since it may be another one. Rows and columns are
    padded to one of few numbers, or to the largest.
    """
    tokens, limit = sampler.config.max_new_tokens, pool.tokens.shape[1]
    counts = pool.mask.sum(axis=1).astype(int)[rows]
    most = len(pool.tokens)
    part = -(-most // _PART)
    size = part if len(rows) <= part and not largest else most
    columns = tokens
    while columns < counts.max(initial=0) or (largest and columns < limit):
        columns *= _PART
    columns = min(columns, limit - tokens)
    pad = sampler.tokenizer.pad_token_id
    ids = [[pad]] * size
    for place, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        ids[place] = [*prompt, *pool.tokens[row, : counts[place]]]
    found = sampler(
        params,
        *left_pad(ids, sampler.prompt_length + columns, pad),
        key,
        wanted=np.arange(size) < len(rows),
    )
    found = jax.tree.map(lambda x: x[: len(rows)], found)
    behind = rows[:, None], counts[:, None] + np.arange(tokens)

    def put(old, new):
        whole = np.array(old)
        whole[behind if new.ndim > 1 else rows] = new
        return whole

    return jax.tree.map(put, pool, found)


def _open(pool: Generation) -> np.ndarray:
    """[B] whether a response goes on."""
    return np.asarray(pool.truncated) & (pool.mask.sum(axis=1) < pool.mask.shape[1])


def _done(pool: Generation, samples: int) -> np.ndarray:
    """[N] whether all responses to a prompt are finished."""
    return ~_open(pool).reshape(-1, samples).any(axis=1)


def _widened(found: Generation, limit: int) -> Generation:
    """Responses with room for `limit` tokens."""

    def one(x):
        if x.ndim == 1:
            return x
        return np.pad(x, [(0, 0), (0, limit - x.shape[1])] + [(0, 0)] * (x.ndim - 2))

    return jax.tree.map(one, found)


def _rows(pool: Generation, groups: np.ndarray, samples: int) -> Generation:
    """The responses to some of the prompts."""
    rows = (groups[:, None] * samples + np.arange(samples)).ravel()
    return jax.tree.map(lambda x: x[rows], pool)
