"""What a link of the reward chain is: a pure function of rewards that knows its own range.

The chain acts on the host, between the verifier and the learner. Every link knows the range of what
it gives, so that the range of the rewards that the learner sees follows from the chain alone.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dfpo_jax.tasks.base import Item, Task

# (low, high) of rewards, compared with them as float32; None has one meaning: no bound is known.
Range = tuple[float, float]

# (item, response) -> the answer in the response, or None where there is none.
Read = Callable[[Item, str], str | None]
# Rewards are float32: products of a few settings up to this size stay finite.
LARGEST = 1e9

_TAG = 0x6E6F6973  # "nois": keeps these random streams apart from those that draw prompts


def whole_response(item: Item, text: str) -> str | None:
    """A response without the space around it, or None if nothing is left."""
    del item
    return text.strip() or None


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
      states: () -> [B, F] float32, `algorithms.trunk.response_features` of each response under the
        initial policy, computed when it is called. None where the run keeps no copy of that policy.
      read: (item, text) -> the answer that the task reads in a response, see `Task.answer`.
    """

    step: int
    round: int
    items: Sequence[Item]
    texts: Sequence[str]
    lengths: np.ndarray
    limit: int
    clean: np.ndarray
    range: Range | None
    states: Callable[[], np.ndarray] | None = None
    read: Read = whole_response


class Initial(NamedTuple):
    """The policy that a run starts from, and what a link may ask of it.

    Attributes:
      items: the prompts that the run will draw or measure its critic on, each text once.
      task: of the run; its verifier is not asked directly, see `judge`.
      respond: (items, n) -> n sampled responses to each item, those of one item consecutive, at the
        temperature of training; a pure function.
      judge: (items, texts) -> [len(texts)] float32, the verifier's rewards of a text for each item.
    """

    items: Sequence[Item]
    task: Task
    respond: Callable[[Sequence[Item], int], Scored]
    judge: Callable[[Sequence[Item], Sequence[str]], np.ndarray]


class Start(NamedTuple):
    """What a link makes of the initial policy, once per run, before the first iteration.

    The run keeps what was made in its work directory; a resumed run reads it, as its policy is
    another one by then.

    Attributes:
      name: of the link's section; no two links of a chain have the same.
      settings: what the making depends on, as JSON gives it back. A resumed run must have the same.
      make: (initial) -> what was made, as JSON gives it back; a pure function. Raises ValueError
        where it cannot be made.
      begin: (made, initial) -> the link that acts from then on, which has no `start`. Raises
        ValueError where what was made does not suffice for the items.
    """

    name: str
    settings: Mapping[str, Any]
    make: Callable[[Initial], Any]
    begin: Callable[[Any, Initial], "Link"]


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
      start: None, or what the link makes of the initial policy before it acts. Until it has begun,
        nothing calls `apply`; `range`, `unit` and `clean` are the same before and after.
    """

    apply: Callable[[np.ndarray, Scored], np.ndarray]
    range: Callable[[Range | None], Range | None]
    words: str = ""
    unit: float = 1.0
    clean: Callable[[Range], Range] | None = None
    start: Start | None = None


def chain(links: Sequence[Link]) -> Link:
    """The links one after another, as one: each is told the range of its own input.

    Those that make something of the initial policy are started together, each under its name.
    """

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
    unit = math.prod(link.unit for link in links)
    return Link(apply, composed, words, unit, clean, _start(links))


def _clean(link: Link, bounds: Range) -> Range:
    if link.clean is not None:
        return link.clean(bounds)
    found = link.range(bounds)
    return (bounds[0] * link.unit, bounds[1] * link.unit) if found is None else found


def _start(links: Sequence[Link]) -> Start | None:
    """The starts of several links as one."""
    starts = {link.start.name: link.start for link in links if link.start is not None}
    if not starts:
        return None

    def make(initial: Initial) -> dict[str, Any]:
        return {name: start.make(initial) for name, start in starts.items()}

    def begin(made: Mapping[str, Any], initial: Initial) -> Link:
        return chain(
            [
                link if link.start is None else link.start.begin(made[link.start.name], initial)
                for link in links
            ]
        )

    return Start("", {name: start.settings for name, start in starts.items()}, make, begin)


def not_begun(rewards: np.ndarray, scored: Scored) -> np.ndarray:
    """`Link.apply` of a link that has not begun; raises RuntimeError."""
    raise RuntimeError("a link of the reward chain was applied before its `start` had begun it")


def generator(seed: int, stream: int, scored: Scored) -> np.random.Generator:
    """Random numbers of a link for one round: a pure function of seed, stream, step and round.

    Args:
      seed: >= 0.
      stream: tells apart what draws random numbers: 0 flips, 1 Gaussian noise, 2 and 3 spikes, 4
        master keys; a new link takes a number of its own. Draw one array of a stream, so that entry
        i depends neither on the batch size nor on which other links are there.
      scored: gives step and round.
    """
    entropy = [seed, _TAG, scored.step, stream]
    return np.random.default_rng(entropy if scored.round == 0 else [*entropy, scored.round])


def prompt_uniform(seed: int, stream: int, scored: Scored, *, fresh: bool) -> np.ndarray:
    """A number of each response's prompt, uniform in [0, 1): [B] float64.

    Only the text of the prompt decides, by a hash: neither its place in the batch nor the order of
    the data set. So all responses to a prompt have the same number.

    Args:
      seed: >= 0.
      stream: tells apart what draws, as in `generator`.
      scored: gives the prompts, and the step.
      fresh: whether every iteration draws anew; else a prompt keeps its number for the whole run.
    """
    place = scored.step if fresh else "always"
    prompts = [item.prompt for item in scored.items]
    found = {prompt: _uniform(f"{seed}/{stream}/{place}/{prompt}") for prompt in set(prompts)}
    return np.array([found[prompt] for prompt in prompts], np.float64)


def _uniform(text: str) -> float:
    """The upper 53 bits of a hash, which a float holds exactly, as a number in [0, 1)."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=b"rewards").digest()
    return (int.from_bytes(digest, "little") >> 11) / 2.0**53


def check_two_ends(bounds: Range | None, who: str) -> Range:
    """The range, if it has two different ends.

    Args:
      bounds: of the rewards that a link receives.
      who: the link and its setting, the beginning of the sentence.

    Raises:
      ValueError: no range is known, or its ends are equal.
    """
    if bounds is None:
        raise ValueError(
            f"{who}; it needs a task with a declared range of rewards, and no range is declared"
        )
    if not bounds[0] < bounds[1]:
        raise ValueError(
            f"{who}; it needs a range of rewards whose low end is below its high end, and the "
            f"range is {bounds}"
        )
    return bounds
