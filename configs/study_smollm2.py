"""A study of algorithms under noise, with SmolLM2-135M-Instruct on one GPU.

python experiments/compare.py --config=configs/study_smollm2.py --workdir=runs/study_smollm2

The run is that of `configs/smollm2_chain_sum.py`, which names the two packages that hold and read
the weights: sums and differences of two numbers of one or two digits. There is no warm start:
every cell loads the published weights itself, so the cells of a seed differ in their algorithm and
noise alone. `experiments/_study/grid.py` documents the sections; --list shows the cells.

No one has run this study, nor one of its cells. There are 252 of them, each of 100 iterations of
1,024 responses of at most 64 tokens. An iteration of `configs/smollm2_chain_sum.py`, which has as
many, takes .86 s on an H200, which makes 86 s for those of a cell. `cell_seconds`, by which --list
estimates the time, is a guess of five minutes, loading and evaluation included.
All cells then take 21 hours. The largest program needs 12.2 GiB. A cell writes two checkpoints of
1.5 GiB to the workdir and removes them. Whether a GPU gives a row again bit for bit has not been
tried either.

One worker runs all cells, as a JAX process takes most of the GPU's memory; compare.py chooses so
where JAX finds a GPU. Three cells show first what one costs:

python experiments/compare.py --config=configs/study_smollm2.py --workdir=runs/study_smollm2 \\
    --only=algorithm=ppo,noise=spike,level=0.3,seed=0 --config.seeds="(0,)"
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from dfpo_jax.training.config_argument import check_argument


def get_config(arg=None):
    """The study."""
    check_argument(__file__, arg)
    study = ConfigDict()
    study.run = _run()
    study.seeds = (0, 1, 2)
    study.cell_seconds = 300.0
    study.sweep = {"policy_optimizer": {"learning_rate": (5e-6, 2e-5)}}
    study.families = {"binary": {"task": {"partial_credit": False}}}
    study.noise = _noise()
    study.reference = "dfpo"
    gae = {"critic": {"units": "affine"}, "advantage": {"name": "gae"}}
    study.algorithms = {
        "dfpo": {"algorithm": "dfpo"},
        "dfpo_gae": {"algorithm": "dfpo", **gae},
        "ppo": {"algorithm": "ppo"},
        "ppo_clipped": {"algorithm": "ppo", "rewards": {"clip": {"bound": 1.0}}},
        "grpo": {"algorithm": "grpo"},
        "dvpo": {"algorithm": "dvpo"},
    }
    return study


def _run():
    """The run without noise, which keeps nothing but its result."""
    run = runpy.run_path(str(Path(__file__).with_name("smollm2_chain_sum.py")))["get_config"]()
    run.rewards.flip.update(false_positive=0.0, false_negative=0.0)
    run.critic.update(confidence=True, pooled=True, whiten=0.01)
    run.evaluation.update(every=0, critic_prompts=0)
    run.checkpoint.every = 0
    run.log.update(samples=0, tensorboard=False)
    run.mesh.update(data=1, fsdp=1)
    return run


def _noise():
    """Kinds of noise: "level" stands for the level, "seed" for the seed."""
    flips = {"false_positive": "level", "false_negative": "level", "seed": "seed"}
    some = {"std": "level", "pattern": " - ", "seed": "seed"}  # on differences, not on sums
    learned = {"samples": 8, "accuracy": "1 - level", "seed": "seed"}
    kinds = {
        "flip": ((0.15, 0.3, 0.4), {"flip": flips}),
        "spike": ((0.1, 0.3, 0.6), {"spike": {"probability": "level", "seed": "seed"}}),
        "gaussian_prompts": ((1.0, 3.0, 9.0), {"gaussian": some}),
        # The level is the share of wrong verdicts of the reward model.
        "learned": ((0.28, 0.42), {"learned": learned}),
        # One level, for labels of the initial policy in place of the answers.
        "votes": ((1.0,), {"votes": {"samples": 8}}),
    }
    return {
        name: {"family": "binary", "levels": levels, "settings": {"rewards": settings}}
        for name, (levels, settings) in kinds.items()
    }
