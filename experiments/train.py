"""Train a configuration: python experiments/train.py --config=configs/quickstart.py --workdir=DIR.

Any key of the configuration can be overridden: --config.train.iterations=20. See `configs/`.

Runs of several processes start this same command once in each; `training/distributed.py` says by
which environment they find each other.

Exit codes: 0 done; 1 stopped by an error during training; 2 bad configuration or flags; 75 stopped
by SIGTERM or SIGINT with its state saved, to be started again with --resume.
"""

import logging
import sys

from absl import flags
from absl import logging as absl_logging

from dfpo_jax.training import command_line

_CONFIG = command_line.define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run; made if missing.")
_RESUME = flags.DEFINE_bool("resume", False, "Continue from the newest checkpoint in the workdir.")
flags.mark_flag_as_required("workdir")


def main():
    """Train, and say where the results are."""
    with command_line.user_errors():
        from dfpo_jax.tasks.base import VerifierFailure
        from dfpo_jax.training import distributed
        from dfpo_jax.training.config import parse_config
        from dfpo_jax.training.loop import train
        from dfpo_jax.training.preemption import EXIT_CODE, Preempted
        from dfpo_jax.training.run import build_run
        from dfpo_jax.training.workdir import open_workdir

        config = parse_config(_CONFIG.value)
        distributed.initialize()
        run = build_run(config)
        open_workdir(_WORKDIR.value, run, _RESUME.value)
    absl_logging.set_verbosity(absl_logging.WARNING)  # Orbax tells its every move otherwise
    main = distributed.is_main()
    logging.getLogger("dfpo_jax").setLevel(logging.INFO if main else logging.ERROR)
    try:
        results = train(run, _WORKDIR.value)
    except Preempted as stop:
        print(f"{stop}; the same command with --resume goes on", file=sys.stderr)
        sys.exit(EXIT_CODE)
    except (FloatingPointError, MemoryError, OSError, VerifierFailure) as error:
        print(f"error: {error}", file=sys.stderr)
        print("the newest complete checkpoint is intact; --resume goes on from it", file=sys.stderr)
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
