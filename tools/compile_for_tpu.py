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

import dataclasses
import importlib.util
import os

from absl import flags
from ml_collections import config_flags

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Not at import: flags are global, and tests import this file."""
    config_flags.DEFINE_config_file("config", None, "Configuration file, NAME.py[:argument].")
    flags.DEFINE_string("topology", None, "Chip and sizes, such as v5p:4x4x4 or v6e:2x4.")
    flags.DEFINE_list("programs", ["prefill", "decode", "train"], "Also: sample, prepare.")
    flags.DEFINE_string("json", None, "Also write the figures to this file.")
    flags.DEFINE_string("text", None, "Also keep the compiled programs' text in this directory.")
    flags.mark_flags_as_required(["config", "topology"])


def prepare_environment() -> None:
    """Keeps libtpu from asking for a host's TPU, and JAX on the CPU; before JAX is imported."""
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["TPU_ACCELERATOR_TYPE"] = "v5p-8"  # any will do: the topology says what to build for
    os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"
    os.environ["JAX_PLATFORMS"] = "cpu"


def topology_devices(topology: str):
    """The chips of a slice as devices to compile for.

    Raises:
      ValueError: a topology that does not exist.
    """
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(topology, platform="tpu").devices
    except Exception as error:  # whatever the plugin raises, it is about this topology
        raise ValueError(f"topology {topology!r}: {str(error).splitlines()[0]}") from error


def main(argv) -> None:
    """Compiles, prints, and exits with 1 where a program does not fit."""
    from _ahead import report
    from _ahead.chips import TPUS, parse_topology

    from dfpo_jax.sharding import create_mesh
    from dfpo_jax.training import command_line
    from dfpo_jax.training.config import parse_config

    with command_line.user_errors():
        if len(argv) > 1:
            raise ValueError(f"unexpected argument {argv[1]!r}; options start with --")
        name, _ = parse_topology(FLAGS.topology)
        if importlib.util.find_spec("libtpu") is None:
            raise ValueError("no TPU compiler: pip install libtpu (in an environment of its own)")
        report.check_programs(FLAGS.programs)
        config = parse_config(FLAGS.config)
        if config.model.attention == "auto":  # what it becomes on a TPU host
            model = dataclasses.replace(config.model, attention="pallas_tpu")
            config = dataclasses.replace(config, model=model)
        axes, devices = config.mesh, topology_devices(FLAGS.topology)
        mesh = create_mesh(axes.data, axes.fsdp, axes.tensor, devices=devices)
        results = report.run(config, mesh, TPUS[name], FLAGS.programs, FLAGS.text)
    report.conclude(results, FLAGS.json)


if __name__ == "__main__":
    prepare_environment()  # configuration files, read with the flags, import JAX
    from dfpo_jax.training import command_line

    define_flags()
    command_line.run(main)
