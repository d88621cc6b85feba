"""Majority votes of the initial policy in place of the reference answers."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dfpo_jax.rewards.interface import Initial, Link, Range, Scored, Start, not_begun
from dfpo_jax.settings import check_interval
from dfpo_jax.tasks.base import Item, Task

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Votes:
    """Pseudo-labels: the answer that most responses of the initial policy give to a prompt.

    The rewards that come in are replaced by those of the verifier with the pseudo-label as the
    reference answer. This is the label noise of self-training by majority vote (TTRL, arXiv
    2504.16084), whose labels are made anew in every iteration; here they are made once and kept, so
    that the noise does not depend on the algorithm.

    An answer is what the task's extraction finds in a response. Answers that the verifier takes for
    the same count together, see `majority`. Where no response has an answer that can be a
    reference, every response to the prompt is wrong.

    Attributes:
      samples: responses of the initial policy to each prompt, at the temperature of training; 0
        for the task's own answers.

    Raises:
      ValueError: samples is negative.
    """

    samples: int = 0

    def __post_init__(self):
        """Check the number of samples."""
        check_interval(self, "samples", low=0)

    def build(self) -> Link | None:
        """The link, or None where the task's own answers are the references."""
        if self.samples == 0:
            return None
        start = Start("votes", {"samples": self.samples}, self._make, self._begin)
        return Link(not_begun, self._range, self._words, start=start)

    @property
    def _words(self) -> str:
        return f"the majority answer of {self.samples} responses of the first policy was the label"

    def _make(self, initial: Initial) -> dict[str, Any]:
        """The label of each prompt, or None; and how many prompts have a right one."""
        labels, right, wrong = {}, 0, []
        for item, answers in zip(initial.items, self._answers(initial), strict=True):
            none = [False] * len(answers)
            accepted = np.array([answer.accepts or none for answer in answers], bool)
            best = majority([answer.votes for answer in answers], accepted)
            labels[item.prompt] = None if best is None else answers[best].text
            right += best is not None and answers[best].right
            wrong += [
                accepted[n, n]
                for n, answer in enumerate(answers)
                if answer.label is not None and not answer.right
            ]
        if wrong and not any(wrong):
            raise ValueError(
                f"rewards.votes: the verifier of {initial.task.name} took none of {len(wrong)} "
                "wrong answers for right when it was the reference answer itself, so it does not "
                "read the reference answer, or reads another one in the payload"
            )
        _LOG.info("labels by vote: right for %d of %d prompts", right, len(labels))
        return {"labels": labels, "right": right}

    def _answers(self, initial: Initial) -> list[list["_Answer"]]:
        """The different answers to each item, in the order in which they first occur."""
        items = initial.items
        scored = initial.respond(items, self.samples)
        solved = scored.clean >= initial.task.solved_at
        found: list[dict[str, _Answer]] = [{} for _ in items]
        for row, response in enumerate(scored.texts):
            item, known = items[row // self.samples], found[row // self.samples]
            text = initial.task.answer(item, response)
            if text is None:
                continue
            if text not in known:
                label = initial.task.relabel(item, text)
                known[text] = _Answer(text, response, bool(solved[row]), label)
            known[text].votes += 1
        groups = [list(answers.values()) for answers in found]
        pairs = [(one, other) for group in groups for one in group if one.label for other in group]
        if pairs:
            texts = [other.response for _, other in pairs]
            rewards = initial.judge([one.label for one, _ in pairs], texts)
            verdicts = iter(rewards >= initial.task.solved_at)
            for group in groups:
                for one in group:
                    if one.label:
                        one.accepts = [bool(next(verdicts)) for _ in group]
        return groups

    def _begin(self, made: Mapping[str, Any], initial: Initial) -> Link:
        labels = made["labels"]
        missing = [item.prompt for item in initial.items if item.prompt not in labels]
        if missing:
            raise ValueError(
                f"rewards.votes has no label for {len(missing)} of {len(initial.items)} prompts, "
                f"the first {missing[0]!r}; a started run has labels for the prompts that it was "
                "started with, so leave task, plan, train.iterations, train.prompts and "
                "evaluation.critic_prompts as they were"
            )

        def apply(rewards: np.ndarray, scored: Scored) -> np.ndarray:
            found = np.full(len(rewards), scored.range[0], np.float32)
            items = [_labelled(initial.task, labels, item) for item in scored.items]
            rows = [row for row, item in enumerate(items) if item is not None]
            if rows:
                texts = [scored.texts[row] for row in rows]
                found[rows] = initial.judge([items[row] for row in rows], texts)
            return found

        share = 100 * made["right"] / max(len(labels), 1)
        words = f"{self._words}, right for {share:.3g}% of {len(labels)} prompts"
        return Link(apply, self._range, words)

    def _range(self, bounds: Range | None) -> Range:
        if bounds is None:
            raise ValueError(
                f"rewards.votes.samples is {self.samples}; it needs a task with a declared range "
                "of rewards, and no range is declared"
            )
        return bounds


@dataclass
class _Answer:
    """One of the answers to a prompt.

    Attributes:
      text: of the answer.
      response: the first that gives it.
      right: whether the verifier takes it for right by the task's own answer.
      label: the prompt with it as the reference, or None where it cannot be one.
      votes: how many responses give it.
      accepts: for each answer to the prompt, whether it is right where this one is the reference;
        () without a label.
    """

    text: str
    response: str
    right: bool
    label: Item | None
    votes: int = 0
    accepts: Sequence[bool] = ()


def majority(votes: Sequence[int], accepted: np.ndarray) -> int | None:
    """The answer with most votes; of several, the one that was given first.

    Args:
      votes: [K] responses that give each answer, in the order in which answers first occur.
      accepted: [K, K] bool, whether answer j is right where answer i is the reference. An answer
        that is not right by itself cannot be a reference.

    Returns:
      The number of the answer i with the largest sum over j of votes[j] accepted[i, j], or None
      where no answer can be a reference.
    """
    able = np.diagonal(accepted) if len(votes) else np.array([], bool)
    if not able.any():
        return None
    return int(np.argmax(np.where(able, accepted @ np.asarray(votes, np.int64), -1)))


def _labelled(task: Task, labels: Mapping[str, str | None], item: Item) -> Item | None:
    """The item with its label as the reference, or None where it has none."""
    label = labels[item.prompt]
    return None if label is None else task.relabel(item, label)
