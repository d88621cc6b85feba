"""Every preset trains on eight devices, and a run that is resumed equals one that is not.

Resumed are those whose states, controls or plans hold something that no other preset's do.
"""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from tiny_run import tiny

from dfpo_jax.algorithms import PRESETS
from dfpo_jax.training.config import parse_config
from dfpo_jax.training.glossary import described
from dfpo_jax.training.loop import train
from dfpo_jax.training.metrics import read_metrics
from dfpo_jax.training.restore import load_run
from dfpo_jax.training.run import build_run
from dfpo_jax.training.workdir import open_workdir

LIGHT = {  # the same parts with smaller heads
    "critic.flow.head.hidden": 8,
    "critic.scalar_flow.head.hidden": 8,
    "critic.quantile.num_quantiles": 16,
}
WARMED_UP = ("vc_ppo", "vapo")
RESUMED = (
    "dfpo",
    "ppo",
    "dvpo",
    "robust_bellman",
    "vc_ppo",
    "gvm",
    "grpo",
    "reinforce_pp",
    "dapo",
    "reinforce_ada",
    "flowrl",
    "vcpo",
    "calibrl",
)


def configured(name, value_model=None, iterations=4):
    """The tiny run of a preset, with a mesh of all three axes."""
    config = tiny(iterations=iterations)
    config.algorithm = name
    config.warm_start.steps = 0
    config.model.num_kv_heads = 2
    config.mesh.update(data=2, fsdp=2, tensor=2)
    config.evaluation.update(every=0, prompts=4, critic_prompts=2, out_of_domain=False)
    if config.critic.name in ("flow", "scalar_flow", "quantile"):
        for path, value in LIGHT.items():
            _, part, *_ = path.split(".")
            if part == config.critic.name:
                config.update_from_flattened_dict({path: value})
    if name in WARMED_UP:
        config.critic.update(warmup=2, warmup_patience=1)
    if name == "vcpo":
        config.train.behaviour_lag = 2
    if name == "gvm":
        config.critic.source = str(value_model)
    return config


def run_in(workdir, config, resume=False):
    run = build_run(parse_config(config))
    open_workdir(workdir, run, resume)
    train(run, workdir)
    return [
        {key: x for key, x in row.items() if not key.startswith("time/")}
        for row in read_metrics(workdir)
    ]


@pytest.fixture(scope="module")
def value_model(tmp_path_factory):
    """A run that trained the critic of a fixed policy."""
    workdir = tmp_path_factory.mktemp("value_model")
    config = configured("ppo", iterations=1)
    config.train.frozen = ("policy",)
    run_in(workdir, config)
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_it_trains_on_eight_devices_and_resumes_exactly(name, value_model, tmp_path):
    iterations = 4 if name in (*RESUMED, *WARMED_UP) else 2
    whole = run_in(tmp_path / "whole", configured(name, value_model, iterations))
    assert [row["step"] for row in whole] == list(range(iterations + 1))
    assert not any(row["train/skipped_updates"] for row in whole[1:])
    written = {key for row in whole for key in row} - {"step"}
    assert written <= set(described(parse_config(configured(name, value_model))))
    assert ("policy/effective_samples" in written) == (name in ("dppo", "vcpo"))
    moved = [row["policy/gradient_norm"] for row in whole[1:]]
    assert np.isfinite(moved).all() and any(moved)
    if name in WARMED_UP:  # the policy rests for two iterations
        assert not any(moved[:2]) and all(moved[2:])
    if name not in RESUMED:
        return
    # Stopped after two iterations, as by a signal: their checkpoint, and the rows until then.
    config = configured(name, value_model)
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "4")
    resumed = run_in(tmp_path / "resumed", config, resume=True)
    assert resumed == whole
    states = [load_run(tmp_path / directory)[1] for directory in ("whole", "resumed")]
    for first, second in zip(*map(jax.tree.leaves, states), strict=True):
        if jax.dtypes.issubdtype(first.dtype, jax.dtypes.prng_key):
            first, second = map(jax.random.key_data, (first, second))
        np.testing.assert_array_equal(first, second)


CROSSINGS = {
    "a flow critic in DPPO's trust region": {
        "critic.name": "flow",
        "critic.flow.head.hidden": 8,
        "objective.name": "divergence",
        "objective.divergence.divergence": "topk_tv",
        "objective.divergence.top": 3,
    },
    "ranks within HL-Gauss": {"critic.name": "categorical", "advantage.name": "rank"},
    "DFPO with refilled groups": {"plan.name": "refill", "critic.flow.head.hidden": 8},
}


@pytest.mark.slow
@pytest.mark.parametrize("crossing", CROSSINGS)
def test_parts_of_several_papers_train_together(crossing, tmp_path):
    config = configured("dfpo", iterations=2)
    config.update_from_flattened_dict(CROSSINGS[crossing])
    rows = run_in(tmp_path, config)
    assert len(rows) == 3 and not any(row["train/skipped_updates"] for row in rows[1:])
    assert any(row["policy/gradient_norm"] > 0 for row in rows[1:])
    assert dataclasses.asdict(parse_config(config))["algorithm"] == "dfpo"
