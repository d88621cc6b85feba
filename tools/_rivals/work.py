"""The work that each trainer does in a process of its own, and what the process answers.

Scripts in environments without dfpo_jax import this module too: it needs the standard library, and
for the tokenizer the packages `tokenizers` and `transformers`, which every trainer has.
"""

import dataclasses
import importlib.metadata
import json
import random
import resource
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

CLIP_NORM = 1.0
LEARNING_RATE = 1e-6  # so small that the lengths of responses stay as they are


@dataclasses.dataclass(frozen=True)
class Work:
    """Iterations of GRPO with a random Llama in float32: one update each, no KL, AdamW.

    Attributes:
      vocab_size, d_model, num_layers, num_heads, num_kv_heads, head_dim, d_ff: of the model, whose
        embedding is its output projection too.
      prompts: of an iteration.
      samples: responses per prompt.
      prompt_length: tokens of every prompt.
      response_length: most tokens of a response.
      ends: the token ids below it end a response; with 0 none does.
      pieces: a trainer that does not pack its rows takes the gradient in so many equal parts, which
        bounds memory; divides `prompts`.
      warmup: iterations that are not timed; the first of them compiles.
      iterations: that are timed.
    """

    vocab_size: int
    d_model: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    prompts: int
    samples: int
    prompt_length: int
    response_length: int
    ends: int = 0
    pieces: int = 1
    warmup: int = 2
    iterations: int = 2

    @property
    def rows(self) -> int:
        """Responses of an iteration."""
        return self.prompts * self.samples

    @property
    def total(self) -> int:
        """Iterations, timed or not."""
        return self.warmup + self.iterations

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end a response; where none shall, one that the model does not have."""
        return tuple(range(self.ends)) or (self.vocab_size,)

    def batches(self) -> list[list[str]]:
        """Prompts of every iteration, which hold no token that ends a response."""
        rng = random.Random(0)

        def prompt() -> str:
            ids = (rng.randrange(self.ends, self.vocab_size) for _ in range(self.prompt_length))
            return " ".join(map(str, ids))

        return [[prompt() for _ in range(self.prompts)] for _ in range(self.total)]


def reward(response: str) -> float:
    """The share of even token ids in the text of a response, in [0, 1]."""
    ids = response.split()
    return sum(x[-1] in "02468" for x in ids) / max(len(ids), 1)


def number_tokenizer(work: Work) -> Any:
    """A tokenizer from `transformers` whose tokens are the numbers of their ids.

    The exception is "<end>", its token for padding and ends, the first of `work.end_ids`. Were it a
    number, the tokenizer would find it within longer ones.
    """
    import tokenizers
    import transformers

    end = "<end>"
    vocabulary = {str(number): number for number in range(work.vocab_size)} | {end: work.end_ids[0]}
    if work.ends:
        del vocabulary[str(work.end_ids[0])]
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=end))
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token=end, eos_token=end, padding_side="left"
    )


class Clock:
    """Takes the time and the tokens of each iteration of a process.

    Args:
      work: what the process does.
      started: `time.time()` when the process was started.
    """

    def __init__(self, work: Work, started: float):
        """No iteration has ended yet."""
        self._work, self._started = work, started
        self._ends, self._prompts, self._responses = [], [], []
        self._phases: list[dict[str, float]] = []

    def count(self, prompts: int, responses: int) -> None:
        """Tokens of an iteration's prompts, once for each of its responses, and of these."""
        self._prompts.append(prompts)
        self._responses.append(responses)

    def end(self, **phases: float) -> None:
        """An iteration ends now; some trainers say how many seconds its phases took."""
        self._ends.append(time.time())
        self._phases.append(phases)

    def answer(self, parameters: int, packages: Iterable[str]) -> None:
        """Print, as the last line, what `Answer` in `_benchmark/rivals.py` reads.

        Args:
          parameters: of the model.
          packages: whose versions are told.
        """
        timed, ends = self._work.iterations, self._ends
        print(flush=True)
        print(
            json.dumps(
                {
                    "first_seconds": ends[0] - self._started,
                    "seconds": [ends[i] - ends[i - 1] for i in range(-timed, 0)],
                    "prompt_tokens": self._prompts[-timed:],
                    "response_tokens": self._responses[-timed:],
                    "phases": self._phases[-timed:],
                    "peak_bytes": _peak_bytes(),
                    "parameters": parameters,
                    "versions": {name: importlib.metadata.version(name) for name in packages},
                }
            ),
            flush=True,
        )


def _peak_bytes() -> int:
    """Largest resident memory of this process.

    Linux counts to `ru_maxrss` the process that this one was forked from.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1 if sys.platform == "darwin" else 1024)


def asked() -> tuple[Work, Clock]:
    """The work and the clock of this process, whose only argument is the JSON of `command`."""
    message = json.loads(sys.argv[1])
    work = Work(**message["work"])
    return work, Clock(work, message["started"])


def command(python: str, script: Path, work: Work) -> list[str]:
    """The command line that starts a script with this work, now."""
    message = {"work": dataclasses.asdict(work), "started": time.time()}
    return [python, str(script), json.dumps(message)]
