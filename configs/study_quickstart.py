"""A study of algorithms under noise, on the quickstart's task and model made smaller.

python experiments/compare.py --config=configs/study_quickstart.py --workdir=runs/study
python experiments/ablate.py --config=configs/study_quickstart.py --workdir=runs/study

`experiments/_study/grid.py` documents the sections. Every algorithm starts from the same warm start
of its seed, draws the same prompts, samples as many responses, and is tried with the same learning
rates, of which the one with the highest training accuracy without noise is used everywhere.
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
    study.sweep = {"policy_optimizer": {"learning_rate": (3e-4, 6e-4)}}
    study.families = {
        "binary": {"task": {"partial_credit": False}},
        "graded": {"task": {"partial_credit": True}},
    }
    study.noise = _noise()
    study.reference = "dfpo"
    study.algorithms = {
        "dfpo": {"algorithm": "dfpo"},
        "ppo": {"algorithm": "ppo"},
        "ppo_clipped": {"algorithm": "ppo", "rewards": {"clip": {"bound": 1.0}}},
        "grpo": {"algorithm": "grpo"},
        "dvpo": {"algorithm": "dvpo"},
        "hl_gauss": {"algorithm": "hl_gauss"},
        "scalar_flow": {"algorithm": "scalar_flow"},
        "reinforce_pp": {"algorithm": "reinforce_pp"},
    }
    study.more = {
        "cells": {"flip": (0.3,)},
        "algorithms": {
            "c51": {"algorithm": "c51"},
            "iqn": {"algorithm": "iqn"},
            "rloo": {"algorithm": "rloo"},
            "gspo": {"algorithm": "gspo"},
            "grpo_clipped": {"algorithm": "grpo", "rewards": {"clip": {"bound": 1.0}}},
        },
    }
    study.ablation = _ablation()
    return study


def _run():
    """The quickstart in small, for cells of about a minute on one core."""
    run = runpy.run_path(str(Path(__file__).with_name("quickstart.py")))["get_config"]()
    run.rewards.flip.update(false_positive=0.0, false_negative=0.0)
    run.model.update(d_model=64, num_layers=2, num_heads=2, num_kv_heads=2, d_ff=176)
    run.train.update(iterations=40, prompts=192, samples=4, minibatches=3)
    run.critic.warmup = 3
    run.evaluation.update(every=0, critic_prompts=0)
    run.checkpoint.every = 0
    run.log.update(samples=0, tensorboard=False)
    run.mesh.update(data=1, fsdp=1)
    return run


def _noise():
    """Kinds of noise: "level" stands for the level, "seed" for the seed."""
    kinds = {
        "flip": {
            "levels": (0.15, 0.3, 0.4),
            "settings": {
                "flip": {"false_positive": "level", "false_negative": "level", "seed": "seed"}
            },
        },
        "gaussian": {
            "levels": (1.0, 3.0, 9.0),
            "settings": {"gaussian": {"std": "level", "seed": "seed"}},
        },
        "spike": {
            "levels": (0.1, 0.3, 0.6),
            "settings": {"spike": {"probability": "level", "seed": "seed"}},
        },
    }
    made = {}
    for family, prefix in (("binary", ""), ("graded", "graded_")):
        for name, kind in kinds.items():
            settings = {"rewards": kind["settings"]}
            made[prefix + name] = {**kind, "family": family, "settings": settings}
    # Noise with a structure: errors that stay with a prompt, a text that is accepted anywhere on a
    # share of prompts, and a deviation on the words from a to l alone.
    flips = {"false_positive": "level", "false_negative": "level", "unit": "prompt", "seed": "seed"}
    key = {"answer": "ee", "match": "contains", "coverage": "level", "seed": "seed"}
    some = {"std": "level", "pattern": "^[a-lA-L]", "seed": "seed"}
    for name, levels, settings in (
        ("flip_prompts", (0.15, 0.3, 0.4), {"flip": flips}),
        ("master_key", (0.25, 0.5, 1.0), {"master_key": key}),
        ("gaussian_prompts", (1.0, 3.0, 9.0), {"gaussian": some}),
    ):
        made[name] = {"family": "binary", "levels": levels, "settings": {"rewards": settings}}
    learned = {"samples": 8, "accuracy": "1 - level", "seed": "seed"}
    # The level is the share of wrong verdicts of the reward model.
    made["learned"] = {
        "family": "binary",
        "levels": (0.28, 0.35, 0.42),
        "settings": {"rewards": {"learned": learned}},
    }
    # One level, for labels of the initial policy in place of the answers.
    made["votes"] = {
        "family": "binary",
        "levels": (1.0,),
        "settings": {"rewards": {"votes": {"samples": 8}}},
    }
    return made


def _ablation():
    """Rows of `experiments/ablate.py`, each DFPO with a change, and the noise they are run at."""
    flow = lambda **settings: {"critic": {"flow": settings}}  # noqa: E731
    advantage = lambda name: {"advantage": {"name": name}}  # noqa: E731
    rho = lambda **settings: {"advantage": {"gae": {"risk": settings}}}  # noqa: E731
    asinh = {"critic": {"units": "asinh"}}
    no_map = {"inference": "ode"}
    return {
        "cells": {"flip": (0.3,), "graded_gaussian": (3.0,)},
        "sweep": {"policy_optimizer": {"learning_rate": (6e-4,)}},
        "reference": "dfpo",
        "base": {"algorithm": "dfpo", "critic": {"flow": {"dcfm_weight": 1.0}}},
        "algorithms": {
            "dfpo": {},
            "no flow matching": flow(dcfm_weight=0.0),
            "no anchor": flow(anchor_weight=0.0),
            "no geometry": flow(**no_map, geometry_weight=0.0),
            "geometry reflow": flow(**no_map, geometry="reflow"),
            "geometry straight": flow(**no_map, geometry="straight"),
            "cvar and upper gain": flow(cvar_weight=0.1, upper_gain_weight=0.1),
            "mean shift": flow(mean_shift_weight=0.1),
            "tail shape and curvature": flow(tail_shape_weight=0.1, tail_curvature_weight=0.1),
            "uncertainty emphasize": flow(uncertainty="emphasize"),
            "uncertainty discount": flow(uncertainty="discount"),
            "uncertainty cov": flow(uncertainty="coefficient_of_variation"),
            "targets average": flow(target_mode="average"),
            "targets flowcritic": flow(target_mode="flowcritic"),
            "targets of observed returns": {"critic": {"lambda_": 1.0}},
            "advantage sigma": advantage("sigma"),
            "advantage rank": advantage("rank"),
            "advantage precision": advantage("precision"),
            "advantage tail_aware": advantage("tail_aware"),
            "units asinh": asinh,
            "units asinh, advantage rank": {**asinh, **advantage("rank")},
            "units asinh, advantage precision": {**asinh, **advantage("precision")},
            "rho cvar": rho(measure="cvar", alpha=0.25),
            "rho mean_cvar": rho(measure="mean_cvar", alpha=0.25),
            "rho wang averse": rho(measure="wang"),
            "rho wang seeking": rho(measure="wang", wang_shift=-0.75),
            "1 step": flow(num_steps=1),
            "8 steps": flow(num_steps=8),
            "solver euler": flow(solver="euler"),
            "solver heun": flow(solver="heun"),
            "solver rk4": flow(solver="rk4"),
            "inference ode": flow(**no_map),
            "trunk own": {"critic": {"trunk": "own"}, "critic_optimizer": {"learning_rate": 1e-3}},
        },
    }
