"""Verifiers: they turn a response and a reference answer into a reward, and count failures.

`extraction` documents the methods of extraction, `judges` the built-in verifiers; `numbers`,
`choices` and `texts` document how numbers, letters and texts are read. An empty response, or one
without an answer, always earns the lowest reward.

A verifier fails if it raises, returns a reward out of range or takes too long. The sample then gets
the configured default reward, the item is logged, and metrics count it. A verifier that fails on
everything is refused before training. One that fails on more than `most_failures` of an iteration
stops the run.
"""

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dfpo_jax.tasks.base import Item, Task, Verdict
from dfpo_jax.tasks.extraction import extractor
from dfpo_jax.tasks.judges import BUILT_IN, check_reference, here, mathematics, usable
from dfpo_jax.tasks.verifier_pool import Pool, shared_pool

_LOG = logging.getLogger(__name__)
_TRIAL_ITEMS = 2  # items that each verifier must judge before training


@dataclass(frozen=True)
class VerifierConfig:
    """Which verifier judges which part of a response, and the reward of its failures.

    Attributes:
      name: "" for the task's own; one of `BUILT_IN`; or "module:function" of a function
        (response, answer, payload) -> reward.
      extract: how to find the answer in a response, see `extraction.extractor`; "" for the task
        preset's setting, or "none" without a preset.
      pattern: the pattern of extract = "regex".
      after: marker after which the answer must be, such as "</think>"; "" for anywhere.
      tolerance: tolerance of "number", relative for answers above 1 and absolute below; with 1e-6
        or less, two whole numbers are compared exactly.
      low: smallest reward, for a response without an answer and for a wrong answer to a built-in
        verifier.
      high: largest reward, for a right answer to a built-in verifier.
      on_failure: reward if the verifier fails, within [low, high].
      timeout: seconds that a verdict may take, for verifiers in processes.
      workers: number of processes for "math_verify", "module:function" and the data sets of
        reasoning_gym.
      memory_gib: address space of such a process; 0 for no limit.
      most_failures: largest share, from 0 to 1, of an iteration's responses on which the verifier
        may fail; a larger share stops the run.
    """

    name: str = ""
    extract: str = ""
    pattern: str = ""
    after: str = ""
    tolerance: float = 1e-6
    low: float = 0.0
    high: float = 1.0
    on_failure: float = 0.0
    timeout: float = 5.0
    workers: int = 2
    memory_gib: float = 4.0
    most_failures: float = 0.2

    def __post_init__(self):
        """Check every field."""
        check_name(self.name)
        extractor(self.methods, self.pattern, self.after)
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"low is {self.low} and high {self.high}; low must be below high")
        if not self.low <= self.on_failure <= self.high:
            raise ValueError(
                f"on_failure is {self.on_failure}; it must lie in [{self.low}, {self.high}]"
            )
        if not self.timeout > 0.0:
            raise ValueError(f"timeout is {self.timeout}; it must be above 0")
        if self.workers < 1:
            raise ValueError(f"workers is {self.workers}; it must be at least 1")
        for name in ("tolerance", "memory_gib"):
            if not getattr(self, name) >= 0.0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        if not 0.0 <= self.most_failures <= 1.0:
            raise ValueError(f"most_failures is {self.most_failures}; it must be from 0 to 1")

    @property
    def methods(self) -> str:
        """How to find the answer: `extract`, or "none" if that is ""."""
        return self.extract or "none"


def check_name(name: str) -> None:
    """Raises if no verifier can have this name.

    Raises:
      ValueError: names it.
    """
    if name and name not in BUILT_IN and not re.fullmatch(r"[\w.]+:\w+", name):
        raise ValueError(
            f"name is {name!r}; it must be one of {', '.join(BUILT_IN)}, or module:function"
        )


class Verifier:
    """A configured verifier with the counts of its failures.

    Attributes:
      config: settings.
      errors: verdicts that failed so far.
      timeouts: verdicts that took too long so far.

    Args:
      config: settings.
      task: the task's name, for the log.
      own: pickled name and parameters of a `reasoning_gym` data set, whose verifier is used if
        `config.name` is "".

    Raises:
      ValueError: the verifier cannot be loaded in its process.
    """

    def __init__(self, config: VerifierConfig, task: str, own: bytes | None = None):
        """Starts a process to check that the verifier can be imported."""
        self.config, self.errors, self.timeouts = config, 0, 0
        self._task, self._own = task, own
        self._extract = extractor(config.methods, config.pattern, config.after)
        self._boxes = config.methods != "none"
        self._reported: set[int] = set()
        self.prepare(config.name)

    def prepare(self, name: str) -> None:
        """Check that a verifier can run.

        Raises:
          ValueError: it cannot; gives the reason.
        """
        if name == "" and self._own is None:
            raise ValueError(f"verifier.name is ''; {self._task} has no built-in verifier")
        if _in_processes(name):
            self._pool(name).check(self._settings(name))

    def judge(
        self, items: Sequence[Item], responses: Sequence[str], names: Sequence[str] = ()
    ) -> list[Verdict]:
        """A verdict for each response; `names` are verifiers that replace the configured one."""
        names = names or [self.config.name] * len(items)
        verdicts: list[Verdict | None] = [None] * len(items)
        asked: dict[str, list[tuple[int, str]]] = {}
        whole = "none" in self.config.methods.split(",")  # "none" takes the whole response
        for row, (response, name) in enumerate(zip(responses, names, strict=True)):
            found = self.found(response, name)
            if found is None:
                verdicts[row] = Verdict(self.config.low)
            else:
                asked.setdefault(name, []).append((row, found))
        for name, rows in asked.items():
            declared = [not (whole and responses[r].strip().endswith(t)) for r, t in rows]
            results = self._results(name, [(text, items[row]) for row, text in rows], declared)
            for (row, _), result in zip(rows, results, strict=True):
                verdicts[row] = self._verdict(items[row], responses[row], *result)
        return verdicts

    def found(self, response: str, name: str | None = None) -> str | None:
        """The answer that a verifier, by default the configured one, gets from a response."""
        return self._extract(response, usable(self.config.name if name is None else name))

    def trial(self, items: Sequence[Item], names: Sequence[str] = ()) -> None:
        """Judge the answers of some items and other texts, without counting failures.

        Args:
          items: any items; the first few of each verifier are used.
          names: as for `judge`.

        Raises:
          ValueError: the verifier fails on all of them; gives the first failure.
        """
        names = names or [self.config.name] * len(items)
        for name in dict.fromkeys(names):
            own = [i for i, other in zip(items, names, strict=True) if other == name]
            found = [(text, i) for i in own[:_TRIAL_ITEMS] for text in (i.answer, "1", "")]
            results = [self._checked(*result) for result in self._results(name, found)]
            if results and all(status != "ok" for status, _ in results):
                raise ValueError(
                    f"verifier {name!r} of {self._task} fails on every one of {len(results)} trial "
                    f"calls, the first by {results[0][1]}; {self._wanted(name)}"
                )

    def _wanted(self, name: str) -> str:
        if ":" not in name:
            return "its reference answers may be of another kind"
        return (
            "it must be a function (response, answer, payload) that returns a number from "
            f"{self.config.low} to {self.config.high}"
        )

    def _results(
        self, name: str, found: Sequence[tuple[str, Item]], declared: Sequence[bool] = ()
    ) -> list[tuple[str, Any]]:
        """(status, reward or message) for each answer that was extracted, with its item.

        `declared` says for each whether a box or a tag declares it an answer; True by default.
        """
        if not _in_processes(name):
            declared = declared or [True] * len(found)
            pairs = zip(found, declared, strict=True)
            return [self._here(name, known, text, item) for (text, item), known in pairs]
        requests = [(text, item.answer, item.payload) for text, item in found]
        if name != "math_verify":
            return self._run(name, requests)
        known = [mathematics(*request[:2]) if self._boxes else None for request in requests]
        left = [request for request, reward in zip(requests, known, strict=True) if reward is None]
        if self._boxes:
            left = [(f"\\boxed{{{text.rstrip(' .')}}}", *rest) for text, *rest in left]
        others = iter(self._run(name, left))
        return [next(others) if k is None else ("ok", self._scaled(k)) for k in known]

    def _run(self, name: str, requests: list[tuple]) -> list[tuple[str, Any]]:
        results = self._pool(name).run(requests, self.config.timeout, self._settings(name))
        if name != "math_verify":
            return results
        return [(s, self._scaled(value) if s == "ok" else value) for s, value in results]

    def _here(self, name: str, declared: bool, response: str, item: Item) -> tuple[str, Any]:
        try:
            reward = here(name, self.config.tolerance, declared)(response, item.answer)
            return "ok", self._scaled(reward)
        except Exception as error:  # no error that model text causes may end a run
            return "error", f"{type(error).__name__}: {error}"

    def _scaled(self, reward: float) -> float:
        """Scales a built-in verifier's reward from [0, 1] to [low, high]."""
        return self.config.low + (self.config.high - self.config.low) * reward

    def _checked(self, status: str, value: Any) -> tuple[str, Any]:
        """Turns a result into an error if its reward is out of range."""
        low, high = self.config.low, self.config.high
        if status == "ok" and not low <= value <= high:
            return "error", f"reward {value} is outside [{low}, {high}]"
        return status, value

    def _verdict(self, item: Item, response: str, status: str, value: Any) -> Verdict:
        """Makes a verdict, and counts and logs a failure."""
        status, value = self._checked(status, value)
        if status == "ok":
            return Verdict(value)
        self.timeouts += status == "timeout"
        self.errors += status == "error"
        if item.index not in self._reported:
            self._reported.add(item.index)
            _LOG.warning(
                "the verifier of %s failed on response %r to %r: %s",
                self._task,
                response,
                item,
                value,
            )
        return Verdict(self.config.on_failure, status, str(value))

    def _pool(self, name: str) -> Pool:
        memory = int(self.config.memory_gib * 2**30)
        return shared_pool(name or "reasoning_gym", self.config.workers, memory)

    def _settings(self, name: str) -> bytes:
        return b"" if name else self._own


class VerifiedTask(Task):
    """A task that a `Verifier` judges.

    Attributes:
      verifier: judges responses and counts its failures.
    """

    verifier: Verifier
    _partial_credit: bool

    def score(self, item: Item, response: str) -> float:
        """The verdict on one response; see `judge`."""
        return self.judge([item], [response])[0].reward

    def judge(self, items: Sequence[Item], responses: Sequence[str]) -> list[Verdict]:
        """Verdicts of the verifier; without part credit only the lowest or highest reward.

        If the verifier fails, `verifier` counts it and logs it once per item, and the reward is
        the configured one.
        """
        verdicts = self.verifier.judge(items, responses, self._verifiers(items))
        if self._partial_credit:
            return verdicts
        return [v.whole(self.solved_at, *self.reward_range) for v in verdicts]

    def answer(self, item: Item, response: str) -> str | None:
        """What the verifier's extraction finds, which may differ by item; see `Task.answer`."""
        names = self._verifiers([item])
        return self.verifier.found(response, names[0] if names else None) or None

    def relabel(self, item: Item, answer: str) -> Item | None:
        """See `Task.relabel`: None where a built-in verifier cannot read the answer."""
        names = self._verifiers([item])
        try:
            check_reference(names[0] if names else self.verifier.config.name, answer)
        except ValueError:
            return None
        return super().relabel(item, answer)

    @property
    def most_failures(self) -> float:
        """The configured share."""
        return self.verifier.config.most_failures

    def trial(self) -> None:
        """See `Task.trial`: judges a few items of each verifier."""
        items = self.everything() or self.batch(0, _TRIAL_ITEMS)
        self.verifier.trial(items, self._verifiers(items))

    def _verifiers(self, items: Sequence[Item]) -> Sequence[str]:
        """Names of verifiers that replace the configured one; () for none."""
        return ()


def _in_processes(name: str) -> bool:
    return name in ("", "math_verify") or ":" in name
