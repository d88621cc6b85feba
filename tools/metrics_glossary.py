"""Make the glossary of metrics, or print what one of them means.

    python tools/metrics_glossary.py
    python tools/metrics_glossary.py --explain=critic/geometry

The first command writes `dfpo_jax/METRICS.md` from the descriptions that stand beside the code; a
test fails where the file is not what it would write. The second one writes nothing.
"""

from pathlib import Path

from absl import flags

import dfpo_jax
from dfpo_jax.training import command_line

FILE = Path(dfpo_jax.__file__).parent / "METRICS.md"


def define_flags() -> None:
    """Defines the flag; not at import, since flags are global and tests import this file."""
    flags.DEFINE_string("explain", None, "Name of a metric to describe, such as policy/kl_old.")


def main():
    """Write the file, or print one description."""
    from dfpo_jax.training.glossary import document, explanation

    with command_line.user_errors():
        if flags.FLAGS.explain is not None:
            print(explanation(flags.FLAGS.explain))
            return
        FILE.write_text(document(), encoding="utf-8")
        print(f"wrote {FILE}")


if __name__ == "__main__":
    define_flags()
    command_line.run(main)
