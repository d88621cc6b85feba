"""Compile the programs of a configuration for GPUs, without having any.

    python tools/compile_for_gpu.py --config=configs/qwen3_0p6b_math_1gpu.py --gpu=h100

XLA's GPU compiler runs on this machine's CPU and needs no weights, tokenizer, arrays or driver. It
comes with the extra `gpu`; install that in a separate environment. Attention is lowered for cuDNN
where it would be on a GPU. Two things differ from compiling on a GPU: the tile sizes of matrix
products are not tuned by running them, and cuDNN's choice of kernels, with their workspace, is not
known.

It prints the same figures as `compile_for_tpu.py`. A chip's memory is the share that JAX allocates:
XLA_CLIENT_MEM_FRACTION, 0.75 by default. `--gpu=h100:8` is a host with eight GPUs.

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
    """Lets JAX load its GPU plugin without a driver, on the CPU; call before importing JAX."""
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    os.environ["JAX_PLATFORMS"] = "cpu"


def memory_fraction() -> float:
    """The share of a GPU's memory that JAX allocates.

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
    """The GPUs that the flags name, as devices to compile for, and the chip with JAX's memory.

    Raises:
      ValueError: the GPU is unknown, or the compiler is not installed.
    """
    from _ahead.chips import GPUS
    from _ahead.gpus import devices, parse_gpu

    name, count = parse_gpu(FLAGS.gpu)
    if not any(map(importlib.util.find_spec, PLUGINS)):
        raise ValueError("no GPU compiler: pip install 'dfpo_jax[gpu]' (in a separate environment)")
    memory = GPUS[name].hbm_bytes * memory_fraction()
    return devices(name, count), dataclasses.replace(GPUS[name], hbm_bytes=memory)


if __name__ == "__main__":
    prepare_environment()  # before the imports below, which import JAX
    from _ahead import report

    from dfpo_jax.training import command_line

    report.define_flags()
    flags.DEFINE_string("gpu", "h100", "Chip, or chip and number: l4, a100, h100, h200:8.")
    command_line.run(lambda: report.main(target, "cudnn"))
