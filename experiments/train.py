"""Train a configuration: python experiments/train.py --config=configs/quickstart.py --workdir=DIR.

Any key of the configuration can be overridden: --config.train.iterations=20. See `configs/`.

The run locks its directory, so a second run in it is refused. --resume continues from the newest
intact checkpoint and names damaged ones.

For a run of several processes, start this command once per process; `training/distributed.py`
documents the environment variables by which they find each other.

--check trains nothing and touches no directory: the program builds everything, prints the settings,
the parameters and the memory that each program needs, and exits.

--profile=N writes a trace of N iterations to the run's directory, for TensorBoard or Perfetto.

Exit codes: 0 done; 1 stopped by an error during training; 2 bad configuration or flags; 75 stopped
by SIGTERM or SIGINT with its state saved, so that --resume can continue it. All processes of a run
end with the code and the message of the first one that fails.
"""

import logging
import sys
from collections.abc import Iterator

from absl import flags

from dfpo_jax.training import command_line

_CONFIG = command_line.define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run; created if missing.")
_RESUME = flags.DEFINE_bool("resume", False, "Continue from the newest intact checkpoint.")
_CHECK = flags.DEFINE_bool("check", False, "Build and describe the run, without training it.")
_PROFILE = flags.DEFINE_integer("profile", 0, "Iterations to trace.", lower_bound=0)

_FAILURES = (FloatingPointError, ImportError, MemoryError, OSError, ValueError)


def _describe(lines: Iterator[str], shown: bool) -> None:
    try:
        for line in lines:
            if shown:
                print(line, flush=True)
    except MemoryError as error:
        raise ValueError(str(error)) from error


def main():
    """Train, and print the results."""
    with command_line.user_errors():
        if not (_CHECK.value or _WORKDIR.value):
            raise ValueError("--workdir must be set, or --check")
        from dfpo_jax.tasks.base import VerifierFailure
        from dfpo_jax.training import check, distributed, failures
        from dfpo_jax.training.config import parse_config
        from dfpo_jax.training.loop import train
        from dfpo_jax.training.preemption import EXIT_CODE, Preempted
        from dfpo_jax.training.run import build_run
        from dfpo_jax.training.workdir import open_workdir

        distributed.initialize()  # first: a part of the user's own may compute as it is built
        with failures.shared(code=2):
            run = build_run(parse_config(_CONFIG.value))
            if _CHECK.value:
                return _describe(check.describe(run), distributed.is_main())
            open_workdir(_WORKDIR.value, run, _RESUME.value)
    main = distributed.is_main()
    if not (main or flags.FLAGS.verbose):
        logging.getLogger("dfpo_jax").setLevel(logging.ERROR)
    try:
        results = train(run, _WORKDIR.value, _PROFILE.value)
    except Preempted as stop:
        print(f"{stop}; the same command with --resume goes on", file=sys.stderr)
        sys.exit(EXIT_CODE)
    except (*_FAILURES, VerifierFailure) as error:
        logging.getLogger("dfpo_jax").debug("it came from", exc_info=True)
        words = " ".join(str(error).split()) or type(error).__name__
        print(f"error: {words}; --resume goes on from the newest checkpoint", file=sys.stderr)
        sys.exit(1)
    if not main:
        return
    for name in run.evaluations:
        before, after = results[name]["before"], results[name]["after"]
        print(
            f"{name.replace('_', '-')} accuracy on clean held-out data: "
            f"{before:.1%} -> {after:.1%} ({100 * (after - before):+.1f} points)"
        )
    print(f"{results['seconds']:.0f} s, {results['peak_memory_bytes'] / 2**30:.1f} GiB peak")
    print(f"report: {_WORKDIR.value}/report.html")


if __name__ == "__main__":
    command_line.run(main)
