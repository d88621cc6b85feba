"""Export a checkpoint to a directory that transformers and vLLM can load.

    python experiments/export.py --workdir=runs/smollm2 --directory=exported

It writes config.json, safetensors, the tokenizer with its chat template, and the generation
settings that were published with the first weights, including the tokens that end a response. LoRA
is folded into the weights.
"""

import jax
import numpy as np
from absl import flags
from transformers import GenerationConfig

from dfpo_jax.models import hf, lora, pretrained
from dfpo_jax.models.config import DTYPES
from dfpo_jax.training import command_line
from dfpo_jax.training.restore import load_run
from dfpo_jax.training.run import Run

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags; not at import, since flags are global and tests import this file."""
    flags.DEFINE_string("workdir", None, "Directory of a run.", required=True)
    flags.DEFINE_string("directory", None, "Output directory; must be new or empty.", required=True)
    flags.DEFINE_integer("step", None, "Iteration; the newest intact checkpoint by default.")
    flags.DEFINE_enum("dtype", None, DTYPES, "Type of the weights; the trained type by default.")


def generation_config(run: Run) -> GenerationConfig:
    """The generation settings published with the weights, with the run's special tokens."""
    source = run.config.weights.source
    found = pretrained.generation_config(source) if source else GenerationConfig()
    found.eos_token_id = list(run.sampler.eos_ids)
    found.pad_token_id = run.tokenizer.pad_token_id
    if found.bos_token_id is None:
        found.bos_token_id = run.tokenizer.bos_token_id
    return found


def export(workdir: str, directory: str, step: int | None = None, dtype: str | None = None) -> int:
    """Write a checkpoint's policy; returns its iteration.

    Raises:
      FileNotFoundError: `workdir` has no run or no such checkpoint.
      ValueError: `directory` is not empty.
    """
    run, state = load_run(workdir, step)
    params = lora.fold(state.params["policy"], run.config.model.lora)
    if dtype is not None:
        params = jax.tree.map(lambda x: np.asarray(x).astype(jax.numpy.dtype(dtype)), params)
    hf.save(
        directory,
        run.config.model,
        params,
        tokenizer=run.tokenizer,
        generation_config=generation_config(run),
    )
    return int(state.step)


def main():
    """Export, and print the iteration."""
    with command_line.user_errors():
        step = export(FLAGS.workdir, FLAGS.directory, FLAGS.step, FLAGS.dtype)
    print(f"iteration {step} of {FLAGS.workdir} is in {FLAGS.directory}")


if __name__ == "__main__":
    define_flags()
    command_line.run(main)
