"""Verifiers: from a response and a reference answer to a reward, failures counted.

A verifier's failure, an exception, a reward out of range or too much time, never ends a run and
never passes for a verdict: the sample gets the configured default reward, the item is logged, and
metrics count it.
"""

import fractions
import logging
import math
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dfpo_jax.tasks.base import Item, Task, Verdict
from dfpo_jax.tasks.extraction import extractor
from dfpo_jax.tasks.verifier_pool import Pool, shared_pool

_LOG = logging.getLogger(__name__)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_LETTER_FIRST = re.compile(r"\W*([A-Z])\W*(?:[.):].*)?", re.DOTALL)
_LETTER_SAID = re.compile(r"(?i:answer|choice|option)(?i:\s+is)?\W{0,4}([A-Z])\b")
_LETTER_IN_BRACKETS = re.compile(r"\(([A-Z])\)")


def exact(response: str, answer: str) -> float:
    """1 where both are the same text, space around them aside."""
    return float(response.strip() == answer.strip())


def normalised(response: str, answer: str) -> float:
    """1 where both are the same but for case, punctuation, articles and space (SQuAD's rule)."""
    return float(_normal(response) == _normal(answer))


def _normal(text: str) -> str:
    bare = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def parse_number(text: str) -> fractions.Fraction | None:
    """The number a text is: 1,234.5, -$7, 12% (which is 12), 3/4, 1.5e3; None if it is none."""
    bare = text.strip().rstrip(".").replace(",", "").replace("$", "").replace("%", "").strip()
    numbers = bare.split("/")
    if len(numbers) > 2 or not bare:
        return None
    values = []
    for part in numbers:
        part = part.strip()
        if len(part) > 100 or not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", part):
            return None
        values.append(fractions.Fraction(part))
    if len(values) == 2 and values[1] == 0:
        return None
    return values[0] / values[1] if len(values) == 2 else values[0]


def number(response: str, answer: str, tolerance: float) -> float:
    """1 where |response - answer| <= tolerance max(1, |answer|).

    Raises:
      ValueError: the reference answer is no number.
    """
    expected, found = parse_number(answer), parse_number(response)
    if expected is None:
        raise ValueError(f"the reference answer {answer!r} is no number")
    if found is None:
        return 0.0
    allowed = fractions.Fraction(tolerance) * max(1, abs(expected))
    return float(abs(found - expected) <= allowed)


def letter(text: str) -> str | None:
    """The letter of a choice: "(B)", "B. because", "The answer is B", else the last "(B)"."""
    text = text.strip()
    if found := _LETTER_FIRST.fullmatch(text):
        return found.group(1)
    found = _LETTER_SAID.findall(text) or _LETTER_IN_BRACKETS.findall(text)
    return found[-1] if found else None


def choice(response: str, answer: str) -> float:
    """1 where both name the same letter.

    Raises:
      ValueError: the reference answer names none.
    """
    expected = letter(answer)
    if expected is None:
        raise ValueError(f"the reference answer {answer!r} names no letter")
    return float(letter(response) == expected)


BUILT_IN = ("exact", "normalised", "number", "choice", "math_verify")


@dataclass(frozen=True)
class VerifierConfig:
    """Which verifier, on which part of a response, and what its failures give.

    Attributes:
      name: "" for the task's own; one of `BUILT_IN`; or "module:function" of a function
        (response, answer, payload) -> reward.
      extract: how the answer is found in a response, see `extraction.extractor`.
      pattern: of extract = "regex".
      after: marker behind which the answer is looked for, such as "</think>"; "" for anywhere.
      tolerance: of "number", relative for answers above 1 and absolute below.
      low: smallest reward, that of a response without an answer too.
      high: largest reward.
      on_failure: reward where the verifier fails, within [low, high].
      timeout: seconds a verdict may take; holds for verifiers in processes.
      workers: processes that verify: those of "math_verify", "module:function" and the data sets
        of reasoning_gym.
      memory_gib: address space of such a process; 0 for no limit.
    """

    name: str = ""
    extract: str = "none"
    pattern: str = ""
    after: str = ""
    tolerance: float = 1e-6
    low: float = 0.0
    high: float = 1.0
    on_failure: float = 0.0
    timeout: float = 5.0
    workers: int = 2
    memory_gib: float = 4.0

    def __post_init__(self):
        """Check every field."""
        check_name(self.name)
        extractor(self.extract, self.pattern, self.after)
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


def check_name(name: str) -> None:
    """Raises unless a verifier can have this name.

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
      own: the task's own verifier, that of a `reasoning_gym` data set: its pickled name and
        parameters; needed where `config.name` is "".

    Raises:
      ValueError: the verifier cannot be loaded in its process.
    """

    def __init__(self, config: VerifierConfig, task: str, own: bytes | None = None):
        """Starts a process to see that the verifier can be imported."""
        self.config, self.errors, self.timeouts = config, 0, 0
        self._task, self._own = task, own
        self._extract = extractor(config.extract, config.pattern, config.after)
        self._reported: set[int] = set()
        self.prepare(config.name)

    def prepare(self, name: str) -> None:
        """See that a verifier can run.

        Raises:
          ValueError: it cannot; says why.
        """
        if name == "" and self._own is None:
            raise ValueError(f"verifier.name is ''; {self._task} has no verifier of its own")
        if _in_processes(name):
            self._pool(name).check(self._settings(name))

    def judge(
        self, items: Sequence[Item], responses: Sequence[str], names: Sequence[str] = ()
    ) -> list[Verdict]:
        """A verdict for each response; `names` are verifiers that replace the configured one."""
        names = names or [self.config.name] * len(items)
        verdicts: list[Verdict | None] = [None] * len(items)
        waiting: dict[str, list[tuple[int, str]]] = {}
        for row, (item, response) in enumerate(zip(items, responses, strict=True)):
            found = self._extract(response)
            if found is None:
                verdicts[row] = Verdict(self.config.low)
            elif _in_processes(names[row]):
                waiting.setdefault(names[row], []).append((row, found))
            else:
                verdicts[row] = self._verdict(item, response, *self._here(names[row], found, item))
        for name, rows in waiting.items():
            requests = [(text, items[row].answer, items[row].payload) for row, text in rows]
            if name == "math_verify" and self.config.extract != "none":
                requests = [(f"\\boxed{{{text}}}", *rest) for text, *rest in requests]
            pool, settings = self._pool(name), self._settings(name)
            results = pool.run(requests, self.config.timeout, settings)
            for (row, _), result in zip(rows, results, strict=True):
                verdicts[row] = self._verdict(items[row], responses[row], *result)
        return verdicts

    def _here(self, name: str, response: str, item: Item) -> tuple[str, Any]:
        functions = {"exact": exact, "normalised": normalised, "choice": choice}
        try:
            if name == "number":
                return "ok", number(response, item.answer, self.config.tolerance)
            return "ok", functions[name](response, item.answer)
        except Exception as error:  # whatever a verifier does with model text must not end a run
            return "error", f"{type(error).__name__}: {error}"

    def _verdict(self, item: Item, response: str, status: str, value: Any) -> Verdict:
        """A verdict; counts and logs one that failed."""
        low, high = self.config.low, self.config.high
        if status == "ok" and not low <= value <= high:
            status, value = "error", f"reward {value} is outside [{low}, {high}]"
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
        return Verdict(self.config.on_failure, status)

    def _pool(self, name: str) -> Pool:
        memory = int(self.config.memory_gib * 2**30)
        return shared_pool(name or "reasoning_gym", self.config.workers, memory)

    def _settings(self, name: str) -> bytes:
        return b"" if name else self._own


class VerifiedTask(Task):
    """A task that a `Verifier` judges.

    Attributes:
      verifier: judges responses, and counts its failures.
    """

    verifier: Verifier
    _partial_credit: bool

    def score(self, item: Item, response: str) -> float:
        """The verdict on one response; see `judge`."""
        return self.judge([item], [response])[0].reward

    def judge(self, items: Sequence[Item], responses: Sequence[str]) -> list[Verdict]:
        """Verdicts of the verifier; lowest or highest reward without part credit.

        A verifier that raises, takes too long, or whose score is outside its range is counted in
        `verifier`, logged once per item, and gives the configured reward.
        """
        verdicts = self.verifier.judge(items, responses, self._verifiers(items))
        if self._partial_credit:
            return verdicts
        return [v.whole(self.solved_at, *self.reward_range) for v in verdicts]

    def _verifiers(self, items: Sequence[Item]) -> Sequence[str]:
        """Names of verifiers that replace the configured one; () for none."""
        return ()


def _in_processes(name: str) -> bool:
    return name in ("", "math_verify") or ":" in name
