"""Compile the programs of a configuration for a TPU slice that need not be there.

    python tools/compile_for_tpu.py --config=configs/qwen3_8b_math_v5p64.py --topology=v5p:4x4x4

The TPU's own compiler runs on this machine's CPU; no weights, no tokenizer and no arrays are
needed. It comes with libtpu: install that in an environment of its own (pip install libtpu), since
JAX takes a machine with libtpu for a TPU host. Prompts have `train.prompt_length` slots; programs
for smaller `train.prompt_buckets` need less. `compile_for_gpu.py` is the same for GPUs.

`_ahead/programs.py` says what the programs are. Printed per program and chip: bytes of arguments,
temporaries, results that do not take the place of an argument, code, and of what else of the train
state lies beside them ("resident"); their sum ("peak") and the share of the chip's memory that it
leaves; FLOPs, bytes between chip and memory, bytes sent to other chips by kind of collective; the
time that the largest of the three takes at the chip's peak rate ("at least"), and which it is: MXU,
HBM or ICI. `_ahead/costs.py` says how they are counted (loops as often as they run),
`_ahead/chips.py` has the chips' figures. ICI time takes all links of a chip as busy; collectives
along one mesh axis get less.

Exit code: 0 if every program fits, 1 if not, 2 for a wrong flag or a missing compiler.
"""

import importlib.util
import os

from absl import flags

FLAGS = flags.FLAGS


def prepare_environment() -> None:
    """Keeps libtpu from asking for a host's TPU, and JAX on the CPU; before JAX is imported."""
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["TPU_ACCELERATOR_TYPE"] = "v5p-8"  # any will do: the topology says what to build for
    os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"
    os.environ["JAX_PLATFORMS"] = "cpu"


def target():
    """The chips of the slice that the flags name as devices to compile for, and what each has.

    Raises:
      ValueError: a topology that does not exist, or no compiler.
    """
    from _ahead.chips import TPUS, parse_topology
    from jax.experimental import topologies

    name, _ = parse_topology(FLAGS.topology)
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError("no TPU compiler: pip install libtpu (in an environment of its own)")
    try:
        return topologies.get_topology_desc(FLAGS.topology, platform="tpu").devices, TPUS[name]
    except Exception as error:  # whatever the plugin raises, it is about this topology
        raise ValueError(f"topology {FLAGS.topology!r}: {str(error).splitlines()[0]}") from error


if __name__ == "__main__":
    prepare_environment()  # what follows imports JAX
    from _ahead import report

    from dfpo_jax.training import command_line

    report.define_flags()
    flags.DEFINE_string("topology", None, "Chip and sizes, such as v5p:4x4x4 or v6e:2x4.")
    flags.mark_flag_as_required("topology")
    command_line.run(lambda: report.main(target, "pallas_tpu"))
