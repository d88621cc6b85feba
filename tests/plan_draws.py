"""Prompts and responses for tests of plans; nothing is sampled."""

import numpy as np

from dfpo_jax.plans import Drawn
from dfpo_jax.tasks.base import Item
from dfpo_jax.types import Rollout


def prompts(count):
    """Items with prompts of 1 to 3 tokens, answers, and a pair of responses."""
    rows = [{"chosen": f"{i}.good", "rejected": f"{i}.bad"} for i in range(count)]
    return [Item("1" * (1 + i % 3), str(i), {"row": rows[i]}, i) for i in range(count)]


def draw(items, samples, round):
    """Responses whose tokens name item, round and sample; prompts as long as the longest."""
    slots = max(len(item.prompt) for item in items)
    rows = [(item, sample) for item in items for sample in range(samples)]
    tokens = np.array([[item.index, round, sample] for item, sample in rows], np.int32)
    mask = np.array(
        [[0.0] * (slots - len(i.prompt)) + [1.0] * len(i.prompt) for i, _ in rows], np.float32
    )
    rewards = np.array([(i.index + s) % 2 for i, s in rows], np.float32)
    rollout = Rollout(
        prompt_tokens=(7 * mask).astype(np.int32),
        prompt_mask=mask,
        tokens=tokens,
        mask=np.ones(tokens.shape, np.float32),
        log_probs=-np.ones(tokens.shape, np.float32),
        truncated=np.zeros(len(rows), bool),
        rewards=rewards,
        clean_rewards=rewards,
        groups=np.repeat(np.arange(len(items), dtype=np.int32), samples),
        samples=samples,
    )
    return Drawn(rollout, [f"{i.index}.{round}.{s}" for i, s in rows], list(items))


def given(items, texts):
    """Responses that hold their text's length, without rewards."""
    drawn = draw(items, 1, 0)
    tokens = drawn.rollout.tokens.copy()
    tokens[:, 2] = [len(text) for text in texts]
    zeros = np.zeros(len(items), np.float32)
    rollout = drawn.rollout.replace(
        tokens=tokens,
        log_probs=np.zeros(tokens.shape, np.float32),
        rewards=zeros,
        clean_rewards=zeros,
    )
    return Drawn(rollout, list(texts), list(items))


class Scripted:
    """A draw whose rewards are written down: for each item, one after another over all rounds.

    Attributes:
      rounds: the indices of the items that were drawn, round by round.
    """

    def __init__(self, rewards):
        """`rewards` by the item's index; an item that is drawn after them gets 9s."""
        self.left, self.rounds = {i: list(x) for i, x in rewards.items()}, []

    def __call__(self, items, samples, round):
        """The next rewards of every item."""
        assert round == len(self.rounds)
        self.rounds.append([item.index for item in items])
        found = []
        for item in items:
            left = self.left.get(item.index, [])
            found += left[:samples] + [9.0] * (samples - len(left))
            self.left[item.index] = left[samples:]
        rewards = np.array(found, np.float32)
        drawn = draw(items, samples, round)
        rollout = drawn.rollout.replace(rewards=rewards, clean_rewards=0 * rewards)
        return drawn._replace(rollout=rollout)
