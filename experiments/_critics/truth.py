"""States of held-out responses, and what follows them: many continuations by the same policy."""

from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np

from dfpo_jax.rollout.collect import as_scored, draw
from dfpo_jax.rollout.verify import score
from dfpo_jax.training.evaluate import observed_returns
from dfpo_jax.training.run import CRITIC, Run
from dfpo_jax.types import ArrayTree, Generation, Rollout

PLACES = ("prompt", "first third", "middle third", "last third")
_STEP = 2**30  # random links of held-out responses draw from here, those of training from 0, 1, ...


class Truth(NamedTuple):
    """Chosen states and their returns.

    Attributes:
      rollout: [B] held-out responses, one to each prompt.
      row: [N] which of them a state belongs to.
      index: [N] i of the state s_i.
      place: [N] its number in `PLACES`.
      returns: [N, C] of the continuations, with the run's noise, in raw units.
    """

    rollout: Rollout
    row: np.ndarray
    index: np.ndarray
    place: np.ndarray
    returns: np.ndarray


def places(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, index and place of the chosen states: s_0, and the middle of each third of a response.

    A state that would be chosen twice counts where it lies first.

    Args:
      lengths: [B] tokens of each response.
    """
    found = []
    for row, length in enumerate(lengths):
        middles = [int((third + 0.5) * length / 3) for third in range(3)]
        taken = dict(reversed([(i, place) for place, i in enumerate([0, *middles])]))
        found += [(row, i, place) for i, place in sorted(taken.items()) if i < length]
    return tuple(np.array(found, int).reshape(-1, 3).T)


def make_truth(run: Run, policy: ArrayTree, prompts: int, continuations: int) -> Truth:
    """Draw held-out responses, choose states, and continue each many times.

    Args:
      run: whose policy and rewards are meant.
      policy: its parameters.
      prompts: held-out prompts.
      continuations: C, of every state.
    """
    held_out = run.evaluations["in_domain"]
    key = jax.random.fold_in(run.key, CRITIC)
    inputs = (run.sampler, policy, held_out.task, run.rewards, held_out.items[:prompts], key)
    drawn = draw(*inputs, _STEP, num_samples=1)
    rollout = jax.tree.map(np.asarray, drawn.rollout)
    row, index, place = places(rollout.mask.sum(axis=1).astype(int))
    prompt = _prefixes(rollout, row, index, run.tokenizer.pad_token_id)
    sampler = replace(run.sampler, prompt_buckets=())
    key = jax.random.fold_in(key, 1)
    continued = sampler(policy, *prompt, key, num_samples=continuations)
    whole = _joined(rollout, *(np.repeat(x, continuations) for x in (row, index)), continued)
    items = [drawn.items[r] for r in row]
    texts = sampler.texts(whole)
    clean = score(held_out.task, items, texts)
    scored = as_scored(held_out.task, items, texts, whole.mask, clean, _STEP, 1)
    rewards = run.rewards.apply(clean, scored)
    returns, _ = observed_returns(
        _rows_of(rollout, whole, rewards, np.repeat(row, continuations)), run.config.returns
    )
    first = np.repeat(index, continuations)
    found = returns[np.arange(len(returns)), first].reshape(-1, continuations)
    return Truth(rollout, row, index, place, found)


def _prefixes(
    rollout: Rollout, row: np.ndarray, index: np.ndarray, pad: int
) -> tuple[np.ndarray, np.ndarray]:
    """Prompts that end with the first tokens of a response, left-padded, and their mask."""
    slots, length = rollout.prompt_tokens.shape[1], rollout.tokens.shape[1]
    tokens = np.full((len(row), slots + length), pad, np.int32)
    mask = np.zeros(tokens.shape, np.float32)
    for n, (r, i) in enumerate(zip(row, index, strict=True)):
        tokens[n, length - i : length - i + slots] = rollout.prompt_tokens[r]
        mask[n, length - i : length - i + slots] = rollout.prompt_mask[r]
        if i > 0:
            tokens[n, -i:], mask[n, -i:] = rollout.tokens[r, :i], 1.0
    return tokens, mask


def _joined(
    rollout: Rollout, row: np.ndarray, index: np.ndarray, continued: Generation
) -> Generation:
    """Responses from a prefix and a continuation, cut at the length limit."""
    length = rollout.tokens.shape[1]
    tokens, mask = np.array(rollout.tokens[row]), np.zeros((len(row), length), np.float32)
    for n, i in enumerate(index):
        tokens[n, i:] = continued.tokens[n, : length - i]
        mask[n, :i], mask[n, i:] = 1.0, continued.mask[n, : length - i]
    ended = np.asarray(continued.mask).sum(axis=1) <= length - index
    truncated = np.where(ended, continued.truncated, True)
    return Generation(tokens, mask, np.zeros_like(mask), truncated)


def _rows_of(rollout: Rollout, whole: Generation, rewards: np.ndarray, row: np.ndarray) -> Rollout:
    """The rollout of whole responses to the prompts of some of its rows."""
    sampled = ("top_tokens", "top_log_probs", "states")  # of other responses
    rows = jax.tree.map(lambda x: x[row], rollout.replace(**dict.fromkeys(sampled)))
    return rows.replace(
        tokens=whole.tokens,
        mask=whole.mask,
        truncated=whole.truncated,
        rewards=rewards,
        clean_rewards=rewards,
    )
