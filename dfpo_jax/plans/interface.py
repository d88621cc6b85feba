"""What a sampling plan is: it draws responses, in one round or several, to make a rollout of."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from dfpo_jax.tasks.base import Item
from dfpo_jax.types import Rollout


class Drawn(NamedTuple):
    """Responses with their rewards.

    Attributes:
      rollout: B rows.
      texts: [B] the responses.
      items: prompts; row b answers `items[rollout.groups[b]]`.
    """

    rollout: Rollout
    texts: Sequence[str]
    items: Sequence[Item]


class Draw(NamedTuple):
    """Where the rows of a rollout come from; calling it samples.

    Attributes:
      sample: (items, responses per item, round) -> len(items) * responses rows, those of one item
        consecutive. An iteration numbers its rounds 0, 1, 2, ...: rounds of one number have the
        same random numbers.
      given: (items, texts) -> a row for each item, whose response is the text with an end of
        sequence, and whose log-probabilities and rewards are 0. Raises ValueError for a text that
        does not fit.
    """

    sample: Callable[[Sequence[Item], int, int], Drawn]
    given: Callable[[Sequence[Item], Sequence[str]], Drawn]

    def __call__(self, items: Sequence[Item], samples: int, round: int) -> Drawn:
        """`sample`."""
        return self.sample(items, samples, round)


class Plan(NamedTuple):
    """How an iteration's rollout is collected.

    Attributes:
      collect: (draw, prompts, count, samples) -> the iteration's rollout of count * samples rows,
        and metrics by name. `prompts(n)` gives the first n of the iteration's prompts; it is a pure
        function, and those of a smaller n are the first of those of a larger one. `collect` is a
        pure function of what it draws, so that a resumed run repeats it. Every round should draw
        equally many rows, or one of few numbers: sampling is compiled anew for each.
      gives: "groups" where samples >= 2 responses to one prompt are consecutive; "pool" where the
        rollout has a baseline, "expert" where it has other responses than the policy's.
      written: (item) -> the texts that the plan gives to `Draw.given` for an item; None where it
        gives none. Raises ValueError for an item without them. A run reads all of them before it
        starts.
      range: of the rewards, where the plan says them itself; None for those of `Draw.sample`.
      round_samples: responses to a prompt in a round, by which sampling is compiled ahead; None for
        as many as the rollout has.
    """

    collect: Callable[[Draw, Callable[[int], list[Item]], int, int], tuple[Drawn, dict[str, float]]]
    gives: frozenset[str] = frozenset()
    written: Callable[[Item], Sequence[str]] | None = None
    range: tuple[float, float] | None = None
    round_samples: int | None = None


def join(drawn: Sequence[Drawn]) -> Drawn:
    """Several rounds as one, row after row.

    Prompts are padded on the left to the most slots of any round, with a prompt mask of 0.

    Args:
      drawn: at least one round, all with the same number of responses per prompt.

    Raises:
      ValueError: there is no round, or the numbers of responses differ.
    """
    samples = {one.rollout.samples for one in drawn}
    if len(samples) != 1:
        raise ValueError(
            f"rounds have {sorted(samples) or 'no'} responses per prompt; join takes rounds with "
            "one common number"
        )
    slots = max(one.rollout.prompt_tokens.shape[1] for one in drawn)
    first = np.cumsum([0, *(len(one.items) for one in drawn)])
    rollouts = []
    for one, start in zip(drawn, first, strict=False):
        rollout = one.rollout
        pad = ((0, 0), (slots - rollout.prompt_tokens.shape[1], 0))
        states = rollout.states
        rollouts.append(
            rollout.replace(
                prompt_tokens=np.pad(rollout.prompt_tokens, pad),  # with any token: the mask is 0
                prompt_mask=np.pad(rollout.prompt_mask, pad),
                states=None if states is None else np.pad(states, (*pad, (0, 0))),
                groups=np.asarray(rollout.groups + start, np.int32),
            )
        )
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *rollouts)
    texts = [text for one in drawn for text in one.texts]
    return Drawn(joined, texts, [item for one in drawn for item in one.items])


def regroup(drawn: Drawn, rows: Sequence[int], items: Sequence[Item]) -> Drawn:
    """Some rows, as equally many responses to each of the items, in this order.

    Args:
      drawn: rows of one round, or of several that are joined.
      rows: N * n of them, by number.
      items: the N prompts; those of the rows n * i to n * (i + 1) answer item i.

    Raises:
      ValueError: the rows are no multiple of the items.
    """
    rows = np.asarray(rows, np.int64)
    samples, rest = divmod(len(rows), max(len(items), 1))
    if rest or samples == 0:
        raise ValueError(
            f"{len(rows)} rows cannot be divided among {len(items)} items; regroup takes equally "
            "many for each"
        )
    rollout = jax.tree.map(lambda leaf: np.asarray(leaf)[rows], drawn.rollout)
    groups = np.repeat(np.arange(len(items), dtype=np.int32), samples)
    texts = [drawn.texts[row] for row in rows]
    return Drawn(rollout.replace(groups=groups, samples=samples), texts, list(items))
