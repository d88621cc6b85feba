"""What a link of the reward chain is: a pure function of rewards that knows its own range.

The chain acts on the host, between the verifier and the learner. Every link knows the range of what
it gives, so that the range of the rewards that the learner sees follows from the chain alone.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from dfpo_jax.tasks.base import Item

# (low, high) of rewards, compared with them as float32; None has one meaning: no bound is known.
Range = tuple[float, float]

# Rewards are float32: products of a few settings up to this size stay finite.
LARGEST = 1e9
_TAG = 0x6E6F6973  # "nois": keeps these random streams apart from those that draw prompts


class Scored(NamedTuple):
    """What a link may read of the responses of one round.

    Attributes:
      step: iteration, >= 0.
      round: of the sampling plan within the iteration, 0 for the first.
      items: [B] the prompt of each response.
      texts: [B] responses.
      lengths: [B] their tokens.
      limit: most tokens a response may have.
      clean: [B] float32, the verifier's rewards.
      range: of the rewards that the link receives; `chain` fills it in for each link. The caller of
        a chain gives that of the verifier's rewards.
    """

    step: int
    round: int
    items: Sequence[Item]
    texts: Sequence[str]
    lengths: np.ndarray
    limit: int
    clean: np.ndarray
    range: Range | None


class Link(NamedTuple):
    """One step from the verifier's rewards to those that the learner sees.

    Attributes:
      apply: (rewards [B] float32, scored) -> [B] float32; pure. What is random in it comes from
        `generator` or another function of the step, the round and the place in the batch.
      range: range of the rewards that come in -> range of those that come out. Raises ValueError
        where the link cannot work on such rewards.
      words: what the link does, for the report, such as "20% of wrong responses were rewarded as
        right".
      unit: how much one unit of the rewards that come in amounts to in those that come out; above 0
        and finite.
      clean: range of the rewards that come in -> range of what becomes of them without noise and
        penalties. None for `range` and, where that knows no bound, for the range that comes in,
        times `unit`.
    """

    apply: Callable[[np.ndarray, Scored], np.ndarray]
    range: Callable[[Range | None], Range | None]
    words: str = ""
    unit: float = 1.0
    clean: Callable[[Range], Range] | None = None


def chain(links: Sequence[Link]) -> Link:
    """The links one after another, as one: each is told the range of its own input."""

    def apply(rewards: np.ndarray, scored: Scored) -> np.ndarray:
        rewards, bounds = np.array(rewards, np.float32), scored.range  # a copy: links are pure
        for link in links:
            rewards = link.apply(rewards, scored._replace(range=bounds))
            bounds = link.range(bounds)
        return rewards

    def composed(bounds: Range | None) -> Range | None:
        for link in links:
            bounds = link.range(bounds)
        return bounds

    def clean(bounds: Range) -> Range:
        for link in links:
            bounds = _clean(link, bounds)
        return bounds

    words = "; ".join(link.words for link in links if link.words)
    return Link(apply, composed, words, math.prod(link.unit for link in links), clean)


def _clean(link: Link, bounds: Range) -> Range:
    if link.clean is not None:
        return link.clean(bounds)
    found = link.range(bounds)
    return (bounds[0] * link.unit, bounds[1] * link.unit) if found is None else found


def generator(seed: int, stream: int, scored: Scored) -> np.random.Generator:
    """Random numbers of a link for one round: a pure function of seed, stream, step and round.

    Args:
      seed: >= 0.
      stream: tells apart what draws random numbers: 0 flips, 1 Gaussian noise, 2 and 3 spikes; a
        new link takes a number of its own. Draw one array of a stream, so that entry i depends
        neither on the batch size nor on which other links are there.
      scored: gives step and round.
    """
    entropy = [seed, _TAG, scored.step, stream]
    return np.random.default_rng(entropy if scored.round == 0 else [*entropy, scored.round])
