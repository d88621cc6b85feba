"""Print the contents of the checkpoints of a run, and which are damaged.

    python tools/inspect_checkpoint.py --workdir=runs/quickstart
    python tools/inspect_checkpoint.py --workdir=runs/quickstart --step=26 --arrays

It lists intact checkpoints with their held-out accuracy, damaged ones with their fault, incomplete
ones, and the arrays of one checkpoint: one line per part of the train state, or per array. It reads
every file once and changes nothing.
"""

import logging
import math
from pathlib import Path

from absl import flags

from dfpo_jax.training import command_line
from dfpo_jax.training.checkpoint import Checkpointer, left_over

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags; not at import, since flags are global and tests import this file."""
    flags.DEFINE_string("workdir", None, "Directory of a run.", required=True)
    flags.DEFINE_integer("step", None, "Iteration to inspect; the newest intact one by default.")
    flags.DEFINE_bool("arrays", False, "One line per array instead of one per part.")


def describe_steps(checkpoints: Checkpointer) -> list[str]:
    """One line per checkpoint, intact or not."""
    lines = []
    for step, fault in checkpoints.faults().items():
        accuracy = None if fault else checkpoints.accuracy(step)
        known = "" if accuracy is None else f", held-out accuracy {accuracy:.1%}"
        lines.append(f"iteration {step}: " + (f"damaged, {fault}" if fault else f"intact{known}"))
    return lines + left_over(checkpoints.directory)


def describe_arrays(arrays: dict, each: bool) -> list[str]:
    """Lines "path, shape, type, bytes" for each array, or "part, arrays, bytes" for each part."""
    parts: dict[str, list[int]] = {}
    lines, total = [], 0
    for path, array in arrays.items():
        size = math.prod(array.shape) * array.dtype.itemsize
        total += size
        name = "/".join(path.split("/")[:2]) if array.shape else "scalars"
        parts.setdefault(name, []).append(size)
        lines.append(f"{path}  {list(array.shape)} {array.dtype}  {_bytes(size)}")
    if not each:
        lines = [f"{n}: {len(s)} arrays, {_bytes(sum(s))}" for n, s in parts.items()]
    return [*lines, f"total: {len(arrays)} arrays, {_bytes(total)}"]


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError


def main():
    """Print both lists."""
    logging.getLogger("dfpo_jax").setLevel(logging.ERROR)  # its warnings are printed below
    with command_line.user_errors():
        if not (Path(FLAGS.workdir) / "checkpoints").is_dir():
            raise FileNotFoundError(f"workdir {FLAGS.workdir} holds no checkpoints")
        checkpoints = Checkpointer(FLAGS.workdir)
        print("\n".join(describe_steps(checkpoints)))
        step = FLAGS.step if FLAGS.step is not None else checkpoints.newest()
        if step not in checkpoints.steps():
            raise ValueError(f"step is {step}; intact checkpoints are {checkpoints.steps()}")
        print(f"\niteration {step}")
        print("\n".join(describe_arrays(checkpoints.describe(step), FLAGS.arrays)))


if __name__ == "__main__":
    define_flags()
    command_line.run(main)
