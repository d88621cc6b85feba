"""A tiny run as one of several processes: python multiprocess_run.py WORKDIR; not a test itself."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[n]) for n in (0, 1, 2)]

from tiny_run import tiny  # noqa: E402

from dfpo_jax.training import distributed  # noqa: E402
from dfpo_jax.training.config import parse_config  # noqa: E402
from dfpo_jax.training.loop import train  # noqa: E402
from dfpo_jax.training.run import build_run  # noqa: E402
from dfpo_jax.training.workdir import open_workdir  # noqa: E402


def main(workdir):
    distributed.initialize()
    config = tiny(iterations=2, prompts=8, prompt_length=9, prompt_buckets=(5, 6))
    config.mesh.update(data=2, fsdp=2, tensor=2)
    config.objective.kl.coefficient = 0.1
    config.evaluation.update(every=2, critic_prompts=4)
    run = build_run(parse_config(config))
    open_workdir(workdir, run)
    train(run, workdir)


if __name__ == "__main__":
    main(sys.argv[1])
