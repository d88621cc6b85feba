"""What a task is: prompts drawn as a pure function of (seed, step), and a response verifier."""

import abc
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

SPLITS = ("train", "held_out")


@dataclasses.dataclass(frozen=True)
class Item:
    """One prompt with what is needed to judge a response to it.

    Attributes:
      prompt: the text the model sees.
      answer: a reference answer; "" where the data set has none (a verifier may accept others).
      payload: what the task's verifier needs besides the response.
      index: position of the item in its data set, for the log.
      messages: the conversation that a chat template renders; () where it is `prompt` alone.
    """

    prompt: str
    answer: str
    payload: Any = None
    index: int = 0
    messages: tuple[Mapping[str, str], ...] = ()

    @property
    def conversation(self) -> tuple[Mapping[str, str], ...]:
        """The messages, or one of the user with the prompt."""
        return self.messages or ({"role": "user", "content": self.prompt},)


class VerifierFailure(RuntimeError):
    """The verifier failed on too many responses of an iteration; training on it is no use."""


class Verdict(NamedTuple):
    """A reward, and how the verifier came to it.

    Attributes:
      reward: the verifier's, or the configured one where it failed.
      status: "ok", "error" or "timeout".
      why: what the verifier said where it failed.
    """

    reward: float
    status: str = "ok"
    why: str = ""

    def whole(self, solved_at: float, low: float, high: float) -> "Verdict":
        """Without part credit: `high` from `solved_at` on, else `low`; failures stay."""
        if self.status != "ok":
            return self
        return Verdict(high if self.reward >= solved_at else low)


class Task(abc.ABC):
    """A source of prompts and the verifier that rewards responses.

    `TaskConfig.build` makes one for each split, with keywords alone: those of the section `task`,
    dataset, parameters, prompt, held_out_percent, solved_at, partial_credit, seed and verifier;
    split, one of `SPLITS`; and accepts, None or a function of an item that is False for those to
    leave out. A subclass sets `name` and `reward_range`, and `solved_at` where it is not 1.

    Attributes:
      name: short name for logs and reports.
      reward_range: (lowest, highest) reward of `score`, or None where it is unbounded.
      solved_at: the reward from which a response counts as correct.
      digests: of the data it read, by split, so that a change of it is noticed; {} where there is
        no data to change.
      most_failures: largest share of an iteration's responses on which the verifier may fail.
    """

    name: str
    reward_range: tuple[float, float] | None
    solved_at: float = 1.0
    digests: Mapping[str, str] = {}
    most_failures: float = 1.0

    @abc.abstractmethod
    def batch(self, step: int, size: int) -> list[Item]:
        """The `size` items of iteration `step`.

        A pure function of the task's seed and `step`: a run that resumes at step n sees what the
        uninterrupted run would have seen. The items of a smaller batch are the first ones of a
        larger batch at the same step.
        """

    @abc.abstractmethod
    def items(self, count: int) -> list[Item]:
        """`count` fixed items with distinct prompts, for evaluation: the same on every call."""

    @abc.abstractmethod
    def score(self, item: Item, response: str) -> float:
        """The verifier's reward of `response`; no response text makes it raise."""

    def everything(self) -> list[Item]:
        """All items where they are a finite list, else []."""
        return []

    def trial(self) -> None:
        """See, before training, that the verifier does not fail on everything.

        Raises:
          ValueError: it does; says why.
        """
        return

    def judge(self, items: Sequence[Item], responses: Sequence[str]) -> list[Verdict]:
        """A verdict for each response, one after another unless a task knows better."""
        return [Verdict(self.score(i, r)) for i, r in zip(items, responses, strict=True)]


def is_held_out(prompt: str, percent: int) -> bool:
    """Whether a prompt belongs to the held-out split, decided by its text alone.

    The first 8 bytes of the BLAKE2b hash of the UTF-8 text, modulo 100, compared with `percent`:
    stable across processes, seeds, machines and Python versions, so the two splits of a data set
    cannot share a prompt.
    """
    digest = hashlib.blake2b(prompt.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % 100 < percent
