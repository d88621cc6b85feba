"""The interface of a task: prompts as a pure function of (seed, step), and a verifier."""

import abc
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

SPLITS = ("train", "held_out")


@dataclasses.dataclass(frozen=True)
class Item:
    """One prompt with the data for judging a response to it.

    Attributes:
      prompt: the text that the model sees.
      answer: a reference answer, or "" if the data set has none (a verifier may accept others).
      payload: any other data that the task's verifier needs.
      index: position of the item in its data set, for the log.
      messages: the conversation that a chat template renders; () if it is only `prompt`.
    """

    prompt: str
    answer: str
    payload: Any = None
    index: int = 0
    messages: tuple[Mapping[str, str], ...] = ()

    @property
    def conversation(self) -> tuple[Mapping[str, str], ...]:
        """The messages, or one user message with the prompt."""
        return self.messages or ({"role": "user", "content": self.prompt},)


class VerifierFailure(RuntimeError):
    """The verifier failed on too many responses of an iteration to train on it."""


class Verdict(NamedTuple):
    """A reward, and whether the verifier failed.

    Attributes:
      reward: the verifier's, or the configured one if it failed.
      status: "ok", "error" or "timeout".
      why: the verifier's message if it failed.
    """

    reward: float
    status: str = "ok"
    why: str = ""

    def whole(self, solved_at: float, low: float, high: float) -> "Verdict":
        """Removes part credit: `high` from `solved_at` on, else `low`; keeps failures."""
        if self.status != "ok":
            return self
        return Verdict(high if self.reward >= solved_at else low)


class Task(abc.ABC):
    """A source of prompts and the verifier that rewards responses.

    `TaskConfig.build` makes one for each split with keywords alone: those of the section `task`,
    dataset, parameters, prompt, held_out_percent, solved_at, partial_credit, seed and verifier;
    split, one of `SPLITS`; and accepts, None or a function that is False for items to leave out. A
    subclass sets `name` and `reward_range`, and `solved_at` if it is not 1.

    Attributes:
      name: short name for logs and reports.
      reward_range: (lowest, highest) reward of `score`, or None if it is unbounded.
      solved_at: the reward from which a response counts as correct.
      digests: a digest of the data it read, by split, which reveals changed data; {} if a task
        reads no data.
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

        A pure function of the task's seed and `step`, so that a run that resumes at step n sees the
        same items as an uninterrupted run. A smaller batch has the first items of a larger batch at
        the same step.
        """

    @abc.abstractmethod
    def items(self, count: int) -> list[Item]:
        """`count` fixed items with distinct prompts for evaluation, the same on every call."""

    @abc.abstractmethod
    def score(self, item: Item, response: str) -> float:
        """The verifier's reward of `response`; must not raise for any text."""

    def answer(self, item: Item, response: str) -> str | None:
        """The text that the verifier takes for the answer in a response; None if it finds none.

        By default it takes the whole response, without the space around it.
        """
        del item
        return response.strip() or None

    def everything(self) -> list[Item]:
        """All items if they are a finite list, else []."""
        return []

    def relabel(self, item: Item, answer: str) -> Item | None:
        """The item with another reference answer, or None where none can be judged by it."""
        return dataclasses.replace(item, answer=answer)

    def trial(self) -> None:
        """Check, before training, that the verifier does not fail on everything.

        Raises:
          ValueError: it does; gives the first failure.
        """
        return

    def judge(self, items: Sequence[Item], responses: Sequence[str]) -> list[Verdict]:
        """A verdict for each response; subclasses may judge several at once."""
        return [Verdict(self.score(i, r)) for i, r in zip(items, responses, strict=True)]


def is_held_out(prompt: str, percent: int) -> bool:
    """Whether a prompt belongs to the held-out split; only its text decides.

    It compares the first 8 bytes of the BLAKE2b hash of the UTF-8 text, modulo 100, with `percent`.
    Processes, seeds, machines and Python versions do not change that, so the two splits of a data
    set cannot share a prompt.
    """
    digest = hashlib.blake2b(prompt.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % 100 < percent
