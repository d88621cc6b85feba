"""Kill a run with SIGKILL at random times, and check that it still reaches the same result.

    python tools/kill_test.py --config=configs/quickstart.py --workdir=runs/kill --kills=30

It trains the configuration once without kills in WORKDIR/whole. Then it trains it in
WORKDIR/killed, where it kills the process `--kills` times and restarts it with --resume; that run
writes a checkpoint after every iteration. All rows of metrics.jsonl (except timings) and the
accuracies in results.json must be equal. The exit code is 1 if they are not, or if a run fails.
Configuration overrides, such as --config.train.iterations=40, apply to both runs.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from absl import flags

from dfpo_jax.training import command_line
from dfpo_jax.training.metrics import read_metrics

FLAGS = flags.FLAGS
_TRAIN = Path(__file__).resolve().parent.parent / "experiments" / "train.py"


def define_flags() -> None:
    """Defines the flags; not at import, since flags are global and tests import this file."""
    flags.DEFINE_string("config", None, "Configuration file.", required=True)
    flags.DEFINE_string("workdir", None, "Directory of both runs.", required=True)
    flags.DEFINE_integer("kills", 30, "Number of kills.")
    flags.DEFINE_integer("seed", 0, "Seed of the times of the kills.")


def start(workdir: Path, overrides: list[str]) -> subprocess.Popen:
    """Starts a training process in its own group, with the log `workdir`.log."""
    command = [sys.executable, str(_TRAIN), f"--config={FLAGS.config}", f"--workdir={workdir}"]
    command += ["--resume", "--config.checkpoint.every=1", "--config.log.tensorboard=False"]
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(workdir.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    with open(f"{workdir}.log", "a") as log:
        return subprocess.Popen(
            [*command, *overrides],
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )


def finish(workdir: Path, overrides: list[str]) -> float:
    """Run to the end; returns the seconds from the start to the first row of metrics.

    Raises:
      RuntimeError: the run failed; gives the last line of its log.
    """
    begun, first = time.perf_counter(), None
    process = start(workdir, overrides)
    while process.poll() is None:
        if first is None and count_rows(workdir) > 0:
            first = time.perf_counter() - begun
        time.sleep(0.05)
    if process.returncode != 0:
        raise RuntimeError(ended(workdir, process.returncode))
    return first or time.perf_counter() - begun


def ended(workdir: Path, code: int) -> str:
    """How a run ended: its exit code and the last line of its log."""
    lines = Path(f"{workdir}.log").read_text(errors="replace").split("\n")
    said = next((" ".join(line.split()) for line in reversed(lines) if line.strip()), "no word")
    return f"the run in {workdir} ended with code {code}: {said} (see {workdir}.log)"


def count_rows(workdir: Path) -> int:
    """Number of rows of metrics written so far."""
    return len(read_metrics(workdir)) if (workdir / "metrics.jsonl").exists() else 0


def kill_at_random(
    workdir: Path, overrides: list[str], kills: int, seconds: float, rng: random.Random
) -> list[int]:
    """Start and kill `kills` times, each within `seconds`; returns the rows at each kill.

    Raises:
      RuntimeError: a process ended by itself before it was killed.
    """
    seen = []
    for number in range(kills):
        process = start(workdir, overrides)
        try:
            code = process.wait(timeout=rng.uniform(0.0, seconds))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        else:
            raise RuntimeError(
                f"start {number} needed no kill, and a run that is done needs more iterations: "
                + ended(workdir, code)
            )
        seen.append(count_rows(workdir))
        print(f"kill {number + 1}/{kills}: after {seen[-1]} rows", flush=True)
    return seen


def differences(whole: Path, killed: Path) -> list[str]:
    """Differences between two finished runs, except timings; empty if they are equal."""

    def rows(workdir):
        kept = []
        for row in read_metrics(workdir):
            kept.append({k: repr(v) for k, v in row.items() if not k.startswith("time/")})
        return kept

    first, second = rows(whole), rows(killed)
    steps = [row["step"] for row in second]
    found = []
    if steps != [row["step"] for row in first]:
        found.append(f"steps in metrics.jsonl: {', '.join(steps)}")
    for a, b in zip(first, second, strict=False):
        found += [
            f"row {a['step']}, {key}: {a[key]}, {b.get(key)}" for key in a if a[key] != b.get(key)
        ]
    results = [json.loads((path / "results.json").read_text()) for path in (whole, killed)]
    for name in ("in_domain", "out_of_domain"):
        pair = [result.get(name) for result in results]
        if pair[0] != pair[1]:
            found.append(f"results.json, {name}: {pair[0]}, {pair[1]}")
    return found


def main(overrides: list[str]):
    """Run both, compare, report."""
    try:
        found, seen = compare(overrides)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    for line in found[:10]:
        print(line)
    print(
        f"{len(seen)} kills, after {min(seen, default=0)} to {max(seen, default=0)} rows; "
        + (f"{len(found)} differences" if found else "metrics and results are equal")
    )
    sys.exit(1 if found else 0)


def compare(overrides: list[str]) -> tuple[list[str], list[int]]:
    """Differences between the two runs, and the number of rows at each kill.

    Raises:
      RuntimeError: a run failed.
    """
    directory = Path(FLAGS.workdir).absolute()
    whole, killed = directory / "whole", directory / "killed"
    directory.mkdir(parents=True, exist_ok=True)
    finish(whole, overrides)
    # Run again with all programs compiled, to time a start up to its first row.
    seconds = finish(directory / "again", overrides)
    seen = kill_at_random(killed, overrides, FLAGS.kills, 1.3 * seconds, random.Random(FLAGS.seed))
    finish(killed, overrides)
    return differences(whole, killed), seen


if __name__ == "__main__":
    define_flags()
    overrides = [argument for argument in sys.argv[1:] if argument.startswith("--config.")]
    own = [argument for argument in sys.argv if argument not in overrides]
    command_line.run(lambda: main(overrides), own)
