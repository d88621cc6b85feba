"""A study in miniature, and rows as its cells would write them."""

from ml_collections import ConfigDict
from tiny_run import tiny


def get_config(arg=None):
    study = ConfigDict()
    study.run = tiny(iterations=1, prompts=4, samples=2)
    study.run.rewards.flip.false_positive = 0.0
    study.run.evaluation.update(every=0, critic_prompts=0, out_of_domain=False)
    study.run.checkpoint.every = 0
    study.seeds = (0, 1)
    study.sweep = {"policy_optimizer": {"learning_rate": (1e-3, 2e-3)}}
    study.families = {
        "binary": {"task": {"partial_credit": False}},
        "graded": {"task": {"partial_credit": True}},
    }
    flips = {"false_positive": "level", "false_negative": "1 - level", "seed": "seed"}
    study.noise = {
        "flip": {
            "family": "binary",
            "levels": (0.2, 0.4),
            "settings": {"rewards": {"flip": flips}},
        },
        "spike": {
            "family": "graded",
            "levels": (0.5,),
            "settings": {"rewards": {"spike": {"probability": "level"}}},
        },
    }
    study.reference = "ppo"
    study.algorithms = {"ppo": {"algorithm": "ppo"}, "grpo": {"algorithm": "grpo"}}
    study.more = {"cells": {"flip": (0.4,)}, "algorithms": {"rloo": {"algorithm": "rloo"}}}
    study.ablation = {
        "cells": {"flip": (0.2,)},
        "sweep": {"policy_optimizer": {"learning_rate": (5e-4,)}},
        "reference": "dfpo",
        "base": {"algorithm": "dfpo", "critic": {"flow": {"num_steps": 2}}},
        "algorithms": {"dfpo": {}, "1 step": {"critic": {"flow": {"num_steps": 1}}}},
    }
    return _two_cells(study) if arg == "two_cells" else study


def _two_cells(study):
    """One without noise and one with."""
    study.seeds = (0,)
    study.sweep.policy_optimizer.learning_rate = (1e-3,)
    study.noise = {"flip": study.noise.flip}
    study.noise.flip.levels = (0.2,)
    study.algorithms = {"ppo": {"algorithm": "ppo"}}
    del study.more
    return study


def made_row(cell, after, sampled=None, **more):
    """A row of a cell that went from 50 % to `after`."""
    accuracy = {"in": [0.5, after], "out": [0.4, after - 0.1]}
    accuracy["sampled"] = [0.5, after if sampled is None else sampled]
    versions = {"dfpo_jax": "1", "jax": "2", "commit": "abc"}
    row = {"cell": cell.hash, **cell.coordinates, **accuracy}
    row |= {"explained": None, "metrics": "0" * 12, "seconds": 30.0, "cpu_seconds": 20.0}
    return row | {"settings": dict(cell.changes), **versions, **more}
