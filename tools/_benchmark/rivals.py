"""Whole iterations of GRPO, dfpo_jax against TRL and tunix, each in a process of its own.

    python tools/benchmark.py --only=rivals --trl=PYTHON --tunix=PYTHON --repeats=3

PYTHON is the interpreter of an environment with that trainer and without dfpo_jax, such as

    python -m venv with_trl && with_trl/bin/pip install trl
    python -m venv with_tunix && with_tunix/bin/pip install google-tunix

How to read its table. An iteration is sampling, rewards, and one update with all responses; the
scripts in `_rivals` say which settings every trainer has. Processes take turns, one at a time, and
dfpo_jax has its turn between both rivals. A turn gives one ratio, of the seconds per token of
dfpo_jax to those of the rival, medians over the timed iterations; tokens are those of prompts and
responses, without padding. The column "time" has the median ratio, with the lowest and highest in
brackets; below 1 dfpo_jax is faster. "Phases" are seconds of parts of dfpo_jax's iteration.
Responses of one length have equally many tokens on all sides; the lengths of ragged ones are drawn
from the same law, by each trainer for itself.

"Start" is the time from the start of a process until its first iteration is done: imports, random
weights, compilation and that iteration. As in its runs, dfpo_jax keeps what it compiled; in
brackets is the median over the turns after the first, which find it. Rivals keep nothing, as they
do by default. "Memory" is the ratio of the largest resident sets, which are in "GiB". Pairs begin
with dfpo_jax.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from _rivals.work import Work, command

OWN = "dfpo_jax"
RIVALS = {"trl": "trl", "tunix": "google-tunix"}
"""By the name of its module, what pip calls it."""

_SMOLLM2 = (49152, 576, 30, 9, 3, 64, 1536)
_TINY = (128, 32, 2, 4, 2, 8, 64)
_SMALL = (512, 128, 4, 4, 2, 32, 384)  # 0.85M parameters
WORKS = {
    "smollm2": Work(*_SMOLLM2, 4, 4, 64, 64),
    "ragged": Work(*_SMOLLM2, 4, 4, 64, 256, ends=49152 // 64, pieces=4),
    "small": Work(*_SMALL, 64, 16, 16, 16, iterations=5, pieces=16),
    "check": Work(*_TINY, 4, 2, 8, 6),
    "check_ragged": Work(*_TINY, 4, 4, 8, 24, ends=16, pieces=2),
}
"""SmolLM2-135M's shape with 16 full responses, and with 16 whose geometric lengths have a mean of a
quarter of the limit; 1,024 short responses of a small model, whose gradient all trainers take in
pieces, as that is faster for each of them. The last two take seconds, and show whether environments
work."""
DEFAULT = ["smollm2", "ragged", "small"]

_FOLDER = Path(__file__).parents[1] / "_rivals"
_SHOWN = 1500  # characters of what a process wrote before it failed


class RivalError(RuntimeError):
    """A trainer's process failed, or did other work than that of dfpo_jax."""


class Answer(NamedTuple):
    """What a process says of its work; lists have one entry for each timed iteration.

    Attributes:
      first_seconds: from its start until its first iteration was done.
      seconds: of iterations.
      prompt_tokens: of an iteration's prompts, once for each response.
      response_tokens: of an iteration's responses.
      phases: seconds of an iteration's parts, by name; empty where a trainer does not say.
      peak_bytes: its largest resident memory.
      parameters: of the model.
      versions: of packages, by name.
    """

    first_seconds: float
    seconds: list[float]
    prompt_tokens: list[int]
    response_tokens: list[int]
    phases: list[dict[str, float]]
    peak_bytes: int
    parameters: int
    versions: dict[str, str]

    def per_token(self) -> float:
        """Median seconds per token over iterations."""
        sides = zip(self.seconds, self.prompt_tokens, self.response_tokens, strict=True)
        return statistics.median(time / (prompt + response) for time, prompt, response in sides)


def environments(paths: Mapping[str, str | None]) -> dict[str, str]:
    """The interpreters to run, by rival, without those that are not given.

    Args:
      paths: by rival, what the user named.

    Raises:
      ValueError: there is no such file, it is no Python, or it has no such package.
    """
    for name, path in paths.items():
        if path is not None:
            _check(name, path)
    return {name: os.path.abspath(path) for name, path in paths.items() if path is not None}


def _check(name: str, path: str) -> None:
    if not os.path.isfile(path):
        raise ValueError(f"--{name}={path}: there is no such file")
    script = f"import importlib.util as x; print('has', x.find_spec({name!r}) is not None)"
    try:
        found = _run([os.path.abspath(path), "-I", "-c", script], name).stdout.split()
    except OSError:
        found = []
    if found not in (["has", "True"], ["has", "False"]):
        raise ValueError(f"--{name}={path}: it does not run Python code")
    if found[1] == "False":
        raise ValueError(
            f"--{name}={path}: that environment has no module {name}; "
            f"{path} -m pip install {RIVALS[name]}"
        )


def chosen(names: Sequence[str]) -> dict[str, Work]:
    """Works by name.

    Raises:
      ValueError: there is no such work.
    """
    for name in names:
        if name not in WORKS:
            raise ValueError(f"--works={name}: there are {', '.join(WORKS)}")
    return {name: WORKS[name] for name in names}


def _run(
    arguments: Sequence[str], side: str, kept: str | None = None
) -> subprocess.CompletedProcess:
    """Run a process of a side on the CPU, without network.

    `kept` is the directory of compiled programs that it finds and adds to; None for none.
    """
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    environment["JAX_ENABLE_COMPILATION_CACHE"] = "false" if kept is None else "true"
    if kept is not None:
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        environment["XDG_CACHE_HOME"] = kept
    if side != OWN:
        environment.pop("PYTHONPATH", None)  # packages of another environment
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)


def ask(
    side: str, python: str, work: Work, folder: Path = _FOLDER, kept: str | None = None
) -> Answer:
    """Let a trainer do the work, and read its answer.

    Args:
      side: `OWN` or a rival.
      python: its interpreter.
      work: the work.
      folder: of the script run_SIDE.py.
      kept: a directory of compiled programs, or None.

    Raises:
      RivalError: the process failed, or its last line is no answer; shows the end of its stderr.
    """
    done = _run(command(python, folder / f"run_{side}.py", work), side, kept)
    shown = f"the end of its stderr:\n{done.stderr[-_SHOWN:].strip()}"
    if done.returncode != 0:
        raise RivalError(f"{side} failed with exit code {done.returncode}; {shown}")
    last = (done.stdout.strip().splitlines() or [""])[-1]
    try:
        answer = Answer(**json.loads(last))
    except (ValueError, TypeError) as error:
        raise RivalError(f"{side} answered {last[-_SHOWN:]!r}; {shown}") from error
    return answer


def compare(
    pythons: Mapping[str, str], works: Mapping[str, Work], repeats: int, folder: Path = _FOLDER
) -> Iterator[dict[str, Any]]:
    """A row for each work and rival, once all turns of the work are over.

    A side that fails gets no further turn with that work.

    Args:
      pythons: from `environments`.
      works: by name.
      repeats: turns, each of which gives a ratio.
      folder: of the scripts.

    Yields:
      "work", "rival", and "error", or what `_row` says.
    """
    sides = _in_turn(list(pythons))
    for name, work in works.items():
        answers, errors = {side: [] for side in sides}, {}
        turns = [side for n in range(repeats) for side in (sides if n % 2 == 0 else sides[::-1])]
        with tempfile.TemporaryDirectory() as directory:
            for side in turns:
                if side in errors or OWN in errors:
                    continue
                try:
                    python = pythons.get(side, sys.executable)
                    kept = directory if side == OWN else None
                    answers[side].append(ask(side, python, work, folder, kept))
                except RivalError as error:
                    errors[side] = str(error)
        for rival in pythons:
            row = {"work": name, "rival": rival}
            error = errors.get(OWN, errors.get(rival)) or _difference(answers, rival, work)
            yield row | ({"error": error} if error else _row(answers[OWN], answers[rival]))


def _in_turn(rivals: list[str]) -> list[str]:
    """Sides in such an order that dfpo_jax is next to every rival; nobody without rivals."""
    return [*rivals[:1], OWN, *rivals[1:]] if rivals else []


def _difference(answers: Mapping[str, list[Answer]], rival: str, work: Work) -> str:
    """How a rival's work differs from that of dfpo_jax; "" if it does not."""
    own, other = answers[OWN][0], answers[rival][0]
    fields = ["parameters", "prompt_tokens"] + ([] if work.ends else ["response_tokens"])
    for field in fields:
        ours, theirs = getattr(own, field), getattr(other, field)
        if ours != theirs:
            return f"other work: {field} {theirs} of {rival}, {ours} of {OWN}"
    return ""


def _row(own: list[Answer], rival: list[Answer]) -> dict[str, Any]:
    """Of answers in turn: ratios, and pairs (dfpo_jax, rival) of medians.

    Returns:
      "ratio": lowest, median and highest of seconds per token; "seconds", "first_seconds",
      "peak_bytes" and "response_tokens": pairs, seconds and tokens of an iteration, but for
      dfpo_jax the first seconds of the first turn; "kept_seconds", its median in the others, or
      None; "phases", medians of dfpo_jax's, by name; "peak_ratio"; "parameters"; "prompt_tokens",
      of an iteration; "versions", of both.
    """
    ratios = [a.per_token() / b.per_token() for a, b in zip(own, rival, strict=True)]
    sides = (own, rival)

    def pair(value) -> list[float]:
        return [statistics.median(map(value, answers)) for answers in sides]

    peaks = pair(lambda x: x.peak_bytes)
    kept = [x.first_seconds for x in own[1:]]
    first_of_rival = statistics.median(x.first_seconds for x in rival)
    return {
        "ratio": [min(ratios), statistics.median(ratios), max(ratios)],
        "seconds": pair(lambda x: statistics.median(x.seconds)),
        "first_seconds": [own[0].first_seconds, first_of_rival],
        "kept_seconds": statistics.median(kept) if kept else None,
        "phases": _medians([phases for answer in own for phases in answer.phases]),
        "peak_bytes": peaks,
        "peak_ratio": peaks[0] / peaks[1],
        "response_tokens": pair(lambda x: statistics.mean(x.response_tokens)),
        "prompt_tokens": own[0].prompt_tokens[0],
        "parameters": own[0].parameters,
        "versions": [answers[0].versions for answers in sides],
    }


def _medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


_COLUMNS = "work rival time seconds phases start memory GiB tokens versions".split()
HEADER = f"| {' | '.join(_COLUMNS)} |\n{'|---' * len(_COLUMNS)}|"


def line(row: Mapping[str, Any]) -> str:
    """A row from `compare`, as one of the table whose head is `HEADER`; pairs begin with dfpo_jax.

    Tokens are those of an iteration: of its prompts, and of its responses. The last column has the
    rival's versions.
    """
    if "error" in row:
        return f"{row['work']}, {row['rival']}: {row['error']}"
    low, median, high = row["ratio"]
    own, rival = row["response_tokens"]
    gib = [x / 2**30 for x in row["peak_bytes"]]
    start = f"{row['first_seconds'][0]:.1f}"
    if row["kept_seconds"] is not None:
        start += f" ({row['kept_seconds']:.1f})"
    cells = [
        row["work"],
        row["rival"],
        f"{median:.2f} ({low:.2f} to {high:.2f})",
        "{:.2f}, {:.2f}".format(*row["seconds"]),
        ", ".join(f"{name} {seconds:.2f}" for name, seconds in row["phases"].items()),
        f"{start}, {row['first_seconds'][1]:.1f}",
        f"{row['peak_ratio']:.2f}",
        "{:.2f}, {:.2f}".format(*gib),
        f"{row['prompt_tokens']:,} + {own:,.0f}, {rival:,.0f}",
        ", ".join(f"{name} {version}" for name, version in row["versions"][1].items()),
    ]
    return f"| {' | '.join(cells)} |"
