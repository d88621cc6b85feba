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

FLAGS = flags.FLAGS
PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
FRACTIONS = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")  # new name, old name


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


def target():
    """The GPUs that the flags name as devices to compile for, and what JAX takes of each.

    Raises:
      ValueError: an unknown GPU, or no compiler.
    """
    from _ahead.chips import GPUS
    from _ahead.gpus import devices, parse_gpu

    name, count = parse_gpu(FLAGS.gpu)
    if not any(map(importlib.util.find_spec, PLUGINS)):
        raise ValueError(
            "no GPU compiler: pip install 'dfpo_jax[gpu]' (in an environment of its own)"
        )
    memory = GPUS[name].hbm_bytes * memory_fraction()
    return devices(name, count), dataclasses.replace(GPUS[name], hbm_bytes=memory)


if __name__ == "__main__":
    prepare_environment()  # what follows imports JAX
    from _ahead import report

    from dfpo_jax.training import command_line

    report.define_flags()
    flags.DEFINE_string("gpu", "h100", "Chip, or chip and number: l4, a100, h100, h200:8.")
    command_line.run(lambda: report.main(target, "cudnn"))
