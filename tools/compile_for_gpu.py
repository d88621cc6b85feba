"""Compile the programs of a configuration for GPUs that need not be there.

    python tools/compile_for_gpu.py --config=configs/qwen3_0p6b_math_1gpu.py --gpu=h100

XLA's own GPU compiler runs on this machine's CPU; no weights, no tokenizer and no arrays are
needed, and no driver. It comes with the extra `gpu`, in an environment of its own. Attention is
lowered for cuDNN where a GPU's would be. Two things differ from what a GPU itself compiles: tile
sizes of matrix products are not tuned by running them, and cuDNN's kernels are chosen there, with
what workspace they want.

Prints what `compile_for_tpu.py` prints. A chip's memory is the share of it that JAX takes:
XLA_CLIENT_MEM_FRACTION, 0.75 by default. `--gpu=h100:8` is a host of eight.

Exit code: 0 if every program fits, 1 if not, 2 for a wrong flag or a missing compiler.
"""

import dataclasses
import importlib.util
import os

from absl import flags
from ml_collections import config_flags

FLAGS = flags.FLAGS
PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
FRACTIONS = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")  # new name, old name


def define_flags() -> None:
    """Not at import: flags are global, and tests import this file."""
    config_flags.DEFINE_config_file("config", None, "Configuration file, NAME.py[:argument].")
    flags.DEFINE_string("gpu", "h100", "Chip, or chip and number: l4, a100, h100, h200:8.")
    flags.DEFINE_list("programs", ["prefill", "decode", "train"], "Also: sample, prepare.")
    flags.DEFINE_string("json", None, "Also write the figures to this file.")
    flags.DEFINE_string("text", None, "Also keep the compiled programs' text in this directory.")
    flags.mark_flags_as_required(["config"])


def prepare_environment() -> None:
    """Lets JAX use its GPU plugin without a driver, itself on the CPU; before JAX is imported."""
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    os.environ["JAX_PLATFORMS"] = "cpu"


def memory_fraction() -> float:
    """The share of a GPU's memory that JAX takes.

    Raises:
      ValueError: the environment variable is not a number in (0, 1].
    """
    name = next((name for name in FRACTIONS if name in os.environ), FRACTIONS[0])
    text = os.environ.get(name, "0.75")
    try:
        fraction = float(text)
    except ValueError:
        fraction = 0.0
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"{name}={text!r}; it must be in (0, 1]")
    return fraction


def main(argv) -> None:
    """Compiles, prints, and exits with 1 where a program does not fit."""
    from _ahead import report
    from _ahead.chips import GPUS
    from _ahead.gpus import devices, parse_gpu

    from dfpo_jax.sharding import create_mesh
    from dfpo_jax.training import command_line
    from dfpo_jax.training.config import parse_config

    with command_line.user_errors():
        if len(argv) > 1:
            raise ValueError(f"unexpected argument {argv[1]!r}; options start with --")
        name, count = parse_gpu(FLAGS.gpu)
        if not any(map(importlib.util.find_spec, PLUGINS)):
            raise ValueError(
                "no GPU compiler: pip install 'dfpo_jax[gpu]' (in an environment of its own)"
            )
        report.check_programs(FLAGS.programs)
        config = parse_config(FLAGS.config)
        if config.model.attention == "auto":  # asks for the platform of this process, a CPU
            model = dataclasses.replace(config.model, attention="cudnn")
            config = dataclasses.replace(config, model=model)
        axes = config.mesh
        mesh = create_mesh(axes.data, axes.fsdp, axes.tensor, devices=devices(name, count))
        memory = GPUS[name].hbm_bytes * memory_fraction()
        chip = dataclasses.replace(GPUS[name], hbm_bytes=memory)
        results = report.run(config, mesh, chip, FLAGS.programs, FLAGS.text)
    report.conclude(results, FLAGS.json)


if __name__ == "__main__":
    prepare_environment()  # configuration files, read with the flags, import JAX
    from dfpo_jax.training import command_line

    define_flags()
    command_line.run(main)
