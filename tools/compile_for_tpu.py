"""Compile the programs of a configuration for a TPU slice, without having one.

    python tools/compile_for_tpu.py --config=configs/qwen3_8b_math_v5p64.py --topology=v5p:4x4x4

The TPU's compiler runs on this machine's CPU and needs no weights, tokenizer or arrays. It comes
with libtpu. Install that in a separate environment (pip install libtpu), since JAX treats a machine
with libtpu as a TPU host. Prompts have `train.prompt_length` tokens; programs for smaller
`train.prompt_buckets` need less. `compile_for_gpu.py` does the same for GPUs.

`_ahead/programs.py` documents the programs. For each program the tool prints, per chip: the bytes
of arguments, temporaries, results that do not replace an argument, code, and the rest of the train
state ("resident"); their sum ("peak") and the share of the chip's memory that is left; FLOPs, bytes
between chip and memory, bytes sent to other chips by kind of collective; and the time that the
slowest of the three takes at the chip's peak rate ("at least"), with its name, MXU, HBM or ICI; the
share of the peak FLOP rate that this leaves; and of "prepare" and "train", slots of sequences per
second, filled or not.
`_ahead/costs.py` documents how they are counted (loops as often as they run), and `_ahead/chips.py`
has the chips' figures. ICI time assumes that all links of a chip are busy; collectives along one
mesh axis get less bandwidth.

Exit code: 0 if every program fits, 1 if not, 2 for a wrong flag or a missing compiler.
"""

import importlib.util
import os

from absl import flags

FLAGS = flags.FLAGS


def prepare_environment() -> None:
    """Keeps libtpu from looking for a TPU, and JAX on the CPU; call before importing JAX."""
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["TPU_ACCELERATOR_TYPE"] = "v5p-8"  # any value works: the topology decides
    os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"
    os.environ["JAX_PLATFORMS"] = "cpu"


def target():
    """The chips of the slice that the flags name, as devices to compile for, and their figures.

    Raises:
      ValueError: the topology does not exist, or the compiler is not installed.
    """
    from _ahead.chips import TPUS, parse_topology
    from jax.experimental import topologies

    name, _ = parse_topology(FLAGS.topology)
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError("no TPU compiler: pip install libtpu (in a separate environment)")
    try:
        return topologies.get_topology_desc(FLAGS.topology, platform="tpu").devices, TPUS[name]
    except Exception as error:  # the plugin may raise any type for a wrong topology
        raise ValueError(f"topology {FLAGS.topology!r}: {str(error).splitlines()[0]}") from error


if __name__ == "__main__":
    prepare_environment()  # before the imports below, which import JAX
    from _ahead import report

    from dfpo_jax.training import command_line

    report.define_flags()
    flags.DEFINE_string("topology", None, "Chip and sizes, such as v5p:4x4x4 or v6e:2x4.")
    flags.mark_flag_as_required("topology")
    command_line.run(lambda: report.main(target, "pallas_tpu"))
