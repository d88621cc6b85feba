"""Questions and answers from JSONL files or the Hugging Face hub."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dfpo_jax.tasks.base import SPLITS, Item, is_held_out
from dfpo_jax.tasks.extraction import extractor
from dfpo_jax.tasks.fields import Prompt, lookup, text_of
from dfpo_jax.tasks.judges import check_reference
from dfpo_jax.tasks.multiple_choice import lettered, right_choice
from dfpo_jax.tasks.rows import Entry, Rows, is_file, read_hub, read_jsonl
from dfpo_jax.tasks.verifiers import VerifiedTask, Verifier, VerifierConfig, check_name

_LOG = logging.getLogger(__name__)
_TAG = 0x6A736F6E  # "json": separates these random streams from others
_EXACT = VerifierConfig("exact")


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns of a row: the keys of `task.parameters`.

    A column may be nested, such as "reward_model.ground_truth" or "messages.0.content"; see
    `fields.lookup`. Answers and choices must be texts or finite numbers.

    Attributes:
      answer: column of the reference answer, which task.prompt cannot name; "" for none.
      answer_extract: how to find the answer in that column, see `extraction.extractor`.
      messages: "" or a column with a conversation, a list of {"role", "content"} that ends with the
        user; it replaces the prompt.
      verifier: "" or a column that names each row's verifier.
      verifiers: maps values of that column to names of verifiers; {} if they are names.
      choices: columns of the choices of a multiple-choice question, the right one first; or one
        column with a list of choices, of which `answer` gives the right one by index, text or
        letter, see `multiple_choice.right_choice`. A hash of the choices shuffles them, and the
        prompt shows them at {choices}; the answer is a letter.
      empty: "" or a column; rows in which it is not empty are skipped.
      held_out: "" or another JSONL file, which then is the held-out split.
      subset: configuration of a data set on the hub.
      split: its split for training, or for both splits if `held_out_split` is "".
      held_out_split: its held-out split; "" divides `split` by a hash.
    """

    answer: str = "answer"
    answer_extract: str = "none"
    messages: str = ""
    verifier: str = ""
    verifiers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    choices: Sequence[str] = ()
    empty: str = ""
    held_out: str = ""
    subset: str = ""
    split: str = "train"
    held_out_split: str = "test"


class JsonlTask(VerifiedTask):
    """Prompts of a file of rows.

    The held-out split is a separate file or split, whose prompts are removed from training, or a
    share of the rows by a hash of their prompt. Of rows with the same prompt, only the first is
    used. A user's verifier gets the payload {"row": the row, "verifier": its name}.

    Attributes:
      name: name of the file or data set.
      reward_range: that of the verifier.
      solved_at: the reward from which a response counts as correct.
      verifier: judges responses and counts its failures.
      passed_over: rows of the split that were not accepted, or that repeat an earlier row's prompt.
      digests: digests of the data that was read, by "train" and "held_out"; see `rows.Rows`.
    """

    def __init__(
        self,
        dataset: str,
        parameters: Mapping[str, Any],
        *,
        split: str = "train",
        seed: int = 0,
        prompt: str = "{question}",
        held_out_percent: int = 10,
        solved_at: float = 1.0,
        partial_credit: bool = True,
        verifier: VerifierConfig = _EXACT,
        accepts: Callable[[Item], bool] | None = None,
    ):
        """Reads every row.

        Args:
          dataset: a JSONL file, or the id of a data set on the hub.
          parameters: fields of `Columns`.
          split: "train" or "held_out".
          seed: decides the order of rows, >= 0.
          prompt: format string over a row.
          held_out_percent: share of held-out rows if they have no separate file or split.
          solved_at: reward from which a response counts as correct.
          partial_credit: whether to keep rewards between the lowest and the highest.
          verifier: judges responses; "exact" if its name is "".
          accepts: items for which it is False are skipped and counted.

        Raises:
          ImportError: `dataset` is on the hub and the package datasets is not installed.
          ValueError: a file, line, column, verifier or argument is wrong; names it.
        """
        if split not in SPLITS:
            raise ValueError(f"split={split!r} is unknown; valid: {', '.join(SPLITS)}")
        if not 0 <= held_out_percent <= 99 or seed < 0:
            raise ValueError(
                f"held_out_percent={held_out_percent} must be from 0 to 99 and seed={seed} >= 0"
            )
        columns = _columns(parameters)
        if columns.held_out and not is_file(dataset):
            raise ValueError(f"held_out={columns.held_out!r} needs a file for dataset={dataset!r}")
        own_file = columns.held_out if is_file(dataset) else columns.held_out_split
        held_out = split == "held_out"
        if held_out and not own_file and held_out_percent == 0:
            raise ValueError("held_out_percent=0 must be at least 1 for split='held_out'")
        self.name = dataset.rstrip("/").split("/")[-1].removesuffix(".jsonl")
        if not verifier.name:
            verifier = dataclasses.replace(verifier, name="exact")
        self.verifier = Verifier(verifier, self.name)
        self.reward_range = (verifier.low, verifier.high)
        self.solved_at, self._partial_credit, self._seed = solved_at, partial_credit, seed
        build, self.digests = _Builder(columns, prompt, verifier.name), {}
        items = build.items(self._read(dataset, columns, held_out))
        if not own_file:
            items = [i for i in items if is_held_out(i.prompt, held_out_percent) == held_out]
        elif not held_out:
            items = self._less(items, build.items(self._read(dataset, columns, True)))
        distinct = _distinct(items)
        self._items = distinct if accepts is None else [i for i in distinct if accepts(i)]
        self.passed_over = len(items) - len(self._items)
        if self.passed_over:
            counts = (self.passed_over, len(items), split, len(items) - len(distinct))
            words = "%s: skipped %d of %d rows of %s, %d of which repeat a prompt"
            _LOG.warning(words, self.name, *counts)
        if not self._items:
            raise ValueError(
                f"{dataset}: no row is left for split={split!r} ({self.passed_over} skipped)"
            )
        for name in {item.payload["verifier"] for item in self._items}:
            self.verifier.prepare(name)

    def _read(self, dataset: str, columns: Columns, held_out: bool) -> list[Entry]:
        own = columns.held_out if is_file(dataset) else columns.held_out_split
        rows = _rows(dataset, columns, held_out)
        self.digests["held_out" if held_out and own else "train"] = rows.digest
        return rows.entries

    def _less(self, items: list[Item], held_out: list[Item]) -> list[Item]:
        prompts = {item.prompt for item in held_out}
        kept = [item for item in items if item.prompt not in prompts]
        if len(kept) < len(items):
            _LOG.warning("%s: %d prompts are held out too", self.name, len(items) - len(kept))
        return kept

    def batch(self, step: int, size: int) -> list[Item]:
        """`size` rows in a random order of (seed, step); repeats none before all have occurred.

        Raises:
          ValueError: `step < 0`.
        """
        if step < 0:
            raise ValueError(f"step={step} must be >= 0")
        generator = np.random.default_rng([self._seed, _TAG, step])
        order: list[int] = []
        while len(order) < size:
            order += generator.permutation(len(self._items)).tolist()
        return [self._items[index] for index in order[:size]]

    def items(self, count: int) -> list[Item]:
        """The first `count` rows in a fixed random order, or all if there are fewer."""
        order = np.random.default_rng([self._seed, _TAG]).permutation(len(self._items))
        return [self._items[index] for index in order[:count].tolist()]

    def everything(self) -> list[Item]:
        """All items of the split in the order of the rows."""
        return list(self._items)

    def _verifiers(self, items: Sequence[Item]) -> list[str]:
        return [item.payload["verifier"] for item in items]


def _distinct(items: Sequence[Item]) -> list[Item]:
    """The first item of each prompt."""
    found: dict[str, Item] = {}
    for item in items:
        found.setdefault(item.prompt, item)
    return list(found.values())


def _columns(parameters: Mapping[str, Any]) -> Columns:
    names = [field.name for field in dataclasses.fields(Columns)]
    for key in parameters:
        if key not in names:
            raise ValueError(f"parameters key={key!r} is unknown; valid: {', '.join(names)}")
    columns = Columns(**parameters)
    extractor(columns.answer_extract)
    return columns


def _rows(dataset: str, columns: Columns, held_out: bool) -> Rows:
    if is_file(dataset):
        return read_jsonl(columns.held_out if held_out and columns.held_out else dataset)
    split = columns.held_out_split if held_out and columns.held_out_split else columns.split
    return read_hub(dataset, columns.subset, split)


class _Builder:
    """Builds items from rows."""

    def __init__(self, columns: Columns, prompt: str, verifier: str):
        self._columns, self._verifier = columns, verifier
        self._extract = extractor(columns.answer_extract)
        listed = columns.choices if len(columns.choices) > 1 else ()
        self._prompt = Prompt(prompt, tuple(filter(None, (columns.answer, *listed[:1]))))

    def items(self, entries: list[Entry]) -> list[Item]:
        """An item for each row.

        Raises:
          ValueError: a row lacks a column or has a wrong value in it; names its line.
        """
        found = []
        for index, (where, row) in enumerate(entries):
            if self._columns.empty and _is_filled(lookup(where, row, self._columns.empty)):
                continue
            found.append(self._item(where, row, index))
        return found

    def _item(self, where: str, row: Mapping[str, Any], index: int) -> Item:
        columns, answer, messages = self._columns, "", ()
        if columns.answer:
            answer = self._text(where, row, columns.answer)
        if columns.choices:
            text, answer = self._choices(where, row, answer)
            row = {**row, "choices": text}
        if columns.messages:
            messages = _messages(where, lookup(where, row, columns.messages))
            prompt = "\n\n".join(message["content"] for message in messages)
        else:
            prompt = self._prompt.fill(where, row)
        extracted = self._extract(answer)
        if extracted is None:
            raise ValueError(f"{where}: {columns.answer_extract} finds no answer in {answer!r}")
        verifier = self._verifier_of(where, row)
        try:
            check_reference(verifier, extracted)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        payload = {"verifier": verifier, "row": dict(row)}
        return Item(prompt, extracted, payload, index, messages)

    def _text(self, where: str, row: Mapping[str, Any], name: str) -> str:
        return text_of(f"{where}: column {name!r}", lookup(where, row, name))

    def _verifier_of(self, where: str, row: Mapping[str, Any]) -> str:
        columns = self._columns
        if not columns.verifier:
            return self._verifier
        name = self._text(where, row, columns.verifier)
        if columns.verifiers and name not in columns.verifiers:
            known = ", ".join(columns.verifiers)
            raise ValueError(f"{where} has no verifier for {name!r}; task.parameters has {known}")
        name = columns.verifiers.get(name, name)
        try:
            check_name(name)
        except ValueError as error:
            raise ValueError(f"{where}: verifier {error}") from error
        return name

    def _choices(self, where: str, row: Mapping[str, Any], answer: str) -> tuple[str, str]:
        """The lettered choices, and the letter of the right one."""
        columns = self._columns.choices
        listed = lookup(where, row, columns[0]) if len(columns) == 1 else None
        if not isinstance(listed, list):
            return lettered(where, [self._text(where, row, name) for name in columns], 0)
        texts = [text_of(f"{where}: column {columns[0]!r}", value) for value in listed]
        value = lookup(where, row, self._columns.answer) if self._columns.answer else answer
        numbers = not any(isinstance(choice, str) for choice in listed)
        right = right_choice(where, texts, value, answer, numbers=numbers)
        return lettered(where, texts, right)


def _is_filled(value: Any) -> bool:
    """Whether a cell is not empty; tables write NaN for an empty cell."""
    return bool(value) and value == value


def _messages(where: str, value: Any) -> tuple[dict[str, str], ...]:
    sound = isinstance(value, list) and len(value) > 0
    sound = sound and all(
        isinstance(m, dict) and {"role", "content"} <= m.keys() and isinstance(m["content"], str)
        for m in value
    )
    if not sound or value[-1]["role"] != "user":
        raise ValueError(
            f"{where}: messages must be a list of objects with role and content, the last one of "
            f"role user; it is {value!r}"
        )
    return tuple(
        {
            name: text_of(f"{where}: {name} of message {index}", message[name])
            for name in ("role", "content")
        }
        for index, message in enumerate(value)
    )
