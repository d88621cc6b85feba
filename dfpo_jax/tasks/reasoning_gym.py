"""Any `reasoning_gym` data set as a task, with splits that cannot share a prompt.

`reasoning_gym` generates entry i of a data set only from its seed and i, so a task draws indices to
draw prompts. Each data set scores responses itself; many give a little credit (0.01 to 0.1) for
wrong answers, and part credit for an answer that contains the right one. Scoring runs in processes
that can be killed, since some data sets evaluate the response as Python.
"""

import dataclasses
import difflib
import pickle
import random
import string
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from dfpo_jax.tasks.base import SPLITS, Item, is_held_out
from dfpo_jax.tasks.verifiers import VerifiedTask, Verifier, VerifierConfig

_TAG = 0x7461736B  # "task": separates these random streams from those of the reward noise
_BATCH, _ITEMS = range(2)
_CHUNK = 64  # indices drawn at a time
_SIZE = 2**31 - 1
_OWN = VerifierConfig()
# Data sets that compute something for every entry when they are created.
_SIZES = {
    "acre": 4_000,
    "gsm_symbolic": 100_000,
    "list_functions": 100_000,
    "word_ladder": 20_000,
}
# Data sets whose entries depend on the order of Python's sets, and therefore on its hash seed.
_HASH_DEPENDENT = frozenset(
    {
        "codeio",
        "intermediate_integration",
        "isomorphic_strings",
        "knight_swap",
        "polynomial_multiplication",
        "ransom_note",
        "word_ladder",
    }
)
# Data sets that also draw from the global generators. (Fewer than one in 100 programs of codeio
# seed themselves again, so their entries still differ between processes.)
_GLOBALLY_RANDOM = frozenset({"codeio", "list_functions"})


class ReasoningGymTask(VerifiedTask):
    """Prompts and verifier of one `reasoning_gym` data set.

    Attributes:
      name: name of the data set.
      reward_range: that of the verifier, (0.0, 1.0) for the data set's own.
      solved_at: the reward from which a response counts as correct.
      verifier: judges responses and counts its failures.
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
        verifier: VerifierConfig = _OWN,
        accepts: Callable[[Item], bool] | None = None,
    ):
        """Creates the data set and checks every argument.

        Args:
          dataset: name of a `reasoning_gym` data set.
          parameters: fields of the data set's configuration without `seed`; `size` is the number
            of entries from which indices are drawn (very large by default).
          split: "train" or "held_out". A hash of its text assigns each prompt to one of them.
          seed: determines which entries are drawn, and their order; >= 0. Every seed draws from
            the same entries.
          prompt: format string over an entry: "{question}", "{metadata[expression]}=", ...
          held_out_percent: expected share of held-out prompts, 0 to 99 (at least 1 for the
            held-out split itself).
          solved_at: in (0, 1].
          partial_credit: whether a response with a score below `solved_at` keeps its score;
            otherwise rewards are 1 (solved) or 0.
          verifier: the data set's own (name "") or another, with the extraction of answers.
          accepts: items for which it is False are skipped.

        Raises:
          ValueError: an argument is wrong; names it, its value and what is allowed. Or the data
            set depends on Python's hash seed and that is random: resumed runs and other hosts
            would see other prompts.
        """
        _check_choice("split", split, SPLITS)
        if not 0 <= held_out_percent <= 99 or (split == "held_out" and held_out_percent == 0):
            raise ValueError(
                f"held_out_percent={held_out_percent} must be from 0 to 99, and at "
                "least 1 for split='held_out'"
            )
        if seed < 0:
            raise ValueError(f"seed={seed} must be >= 0")
        if not 0.0 < solved_at <= 1.0:
            raise ValueError(f"solved_at={solved_at} must be in (0, 1]")
        self.name = dataset
        self.solved_at = solved_at
        self._partial_credit = partial_credit
        parameters = _all_parameters(dataset, parameters)
        self._dataset = _create(dataset, parameters)
        names = self._dataset.dataset_names if dataset == "composite" else [dataset]
        self._sources = frozenset(names)
        _check_hashing(self._sources)
        self.verifier = Verifier(verifier, dataset, pickle.dumps((dataset, parameters)))
        self.reward_range = (verifier.low, verifier.high)
        self._accepts = accepts
        self._size = self._dataset.size
        self._prompt = prompt
        self._held_out = split == "held_out"
        self._percent = held_out_percent
        self._seed = seed
        self._check_prompt()

    def batch(self, step: int, size: int) -> list[Item]:
        """The `size` items of iteration `step`; see `Task.batch`. A prompt may occur twice.

        Raises:
          ValueError: `step < 0`, or the split appears to have no prompt.
        """
        if step < 0:
            raise ValueError(f"step={step} must be >= 0")
        return self._draw(size, stream=_BATCH, step=step, distinct=False)

    def items(self, count: int) -> list[Item]:
        """`count` fixed items with distinct prompts; see `Task.items`.

        Raises:
          ValueError: the split appears to have fewer distinct prompts.
        """
        return self._draw(count, stream=_ITEMS, step=0, distinct=True)

    def relabel(self, item: Item, answer: str) -> Item | None:
        """See `Task.relabel`: the data set's own score reads the answer of the entry."""
        found = super().relabel(item, answer)
        return found and dataclasses.replace(found, payload={**item.payload, "answer": answer})

    def _draw(self, count: int, *, stream: int, step: int, distinct: bool) -> list[Item]:
        share = self._percent if self._held_out else 100 - self._percent
        patience = 1000 * (count + 20) // share  # most consecutive draws without a new item
        items, seen, misses = [], set(), 0
        indices = self._indices(stream, step)
        while len(items) < count:
            item = self._item(next(indices))
            if (
                item is None
                or is_held_out(item.prompt, self._percent) != self._held_out
                or (distinct and item.prompt in seen)
                or (self._accepts is not None and not self._accepts(item))
            ):
                misses += 1
                if misses > patience:
                    split = "held_out" if self._held_out else "train"
                    raise ValueError(
                        f"found {len(items)} of {count} {'distinct ' if distinct else ''}prompts "
                        f"of {self.name} in split={split!r}: {misses} draws in a row brought no "
                        "new one. Ask for fewer items, or widen parameters or the prompt"
                    )
                continue
            items.append(item)
            seen.add(item.prompt)
            misses = 0
        return items

    def _indices(self, stream: int, step: int) -> Iterator[int]:
        generator = np.random.default_rng([self._seed, _TAG, stream, step])
        while True:
            yield from generator.integers(self._size, size=_CHUNK).tolist()

    def _item(self, index: int) -> Item | None:
        """Entry `index`, or None if the generator finds none for this index."""
        try:
            entry = self._entry(index)
        except IndexError:
            # word_ladder finds no entry for some indices, and then shrinks `size` to refuse all
            # larger ones.
            self._dataset.size = self._size
            return None
        answer = "" if entry["answer"] is None else str(entry["answer"])
        return Item(_format(self._prompt, entry), answer, entry, index)

    def _entry(self, index: int) -> dict[str, Any]:
        if not self._sources & _GLOBALLY_RANDOM:
            return self._dataset[index]
        states = random.getstate(), np.random.get_state()
        random.seed(index)
        np.random.seed(index % 2**32)
        try:
            return self._dataset[index]
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])

    def _check_prompt(self) -> None:
        try:
            fields = [field for _, field, _, _ in string.Formatter().parse(self._prompt) if field]
        except ValueError as error:
            raise ValueError(f"prompt={self._prompt!r} is not a format string: {error}") from error
        if not fields:
            raise ValueError(
                f"prompt={self._prompt!r} names no field of the entry, such as {{question}}"
            )
        if any(field.partition("[")[0] == "answer" for field in fields):
            raise ValueError(
                f"prompt={self._prompt!r} puts 'answer', the reference answer, into the prompt; "
                "write {{answer}} to get the word in braces"
            )
        next(item for item in map(self._item, range(self._size)) if item is not None)


def _all_parameters(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    # Here, because it takes a second, which runs on other data need not wait.
    from reasoning_gym.factory import DATASETS

    _check_choice("dataset", name, sorted(DATASETS))
    config = DATASETS[name][1]
    fields = sorted({field.name for field in dataclasses.fields(config)} - {"seed"})
    for key in given:
        _check_choice("parameters key", key, fields, show=len(fields))
    return {"seed": 0, "size": _SIZES.get(name, _SIZE)} | dict(given)


def _create(name: str, parameters: dict[str, Any]) -> Any:
    from reasoning_gym import create_dataset

    try:
        dataset = create_dataset(name, **parameters)
        dataset[0]
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"parameters={parameters} of {name} are refused: {error}") from error
    return dataset


def _check_hashing(names: frozenset[str]) -> None:
    dependent = sorted(names & _HASH_DEPENDENT)
    if dependent and sys.flags.hash_randomization:
        raise ValueError(
            f"dataset {dependent[0]!r} has other entries in every process, since they depend on "
            "Python's hash seed; set PYTHONHASHSEED=0 in the environment, on every host of a run"
        )


def _format(prompt: str, entry: Mapping[str, Any]) -> str:
    try:
        return prompt.format_map(entry)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        fields = [f"{{{key}}}" for key in entry if key != "metadata"]
        fields += [f"{{metadata[{key}]}}" for key in entry["metadata"]]
        raise ValueError(
            f"prompt={prompt!r} does not fit the entries ({type(error).__name__}: {error}); they "
            f"have {', '.join(fields)}"
        ) from error


def _check_choice(argument: str, value: str, allowed, show: int = 5) -> None:
    if value in allowed:
        return
    closest = difflib.get_close_matches(str(value), allowed, n=show, cutoff=0.0)
    what = "valid" if len(closest) == len(allowed) else "the closest valid names are"
    raise ValueError(f"{argument}={value!r} is unknown; {what}: {', '.join(closest)}")
