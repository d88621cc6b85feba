"""Whole runs of algorithms that are composed otherwise than DFPO."""

import sys

import pytest
from tiny_run import tiny

from dfpo_jax.training.config import parse_config
from dfpo_jax.training.loop import train
from dfpo_jax.training.metrics import read_metrics
from dfpo_jax.training.run import build_run
from dfpo_jax.training.workdir import open_workdir

REINFORCE = """
from dataclasses import dataclass

from dfpo_jax.advantages import Advantage


@dataclass(frozen=True)
class Reinforce:
    scale: float = 1.0

    def build(self):
        def estimate(view, steps, rollout):
            return self.scale * rollout.rewards[:, None] * steps.mask

        return Advantage(estimate, whole_response=True)
"""


def run_in(workdir, config):
    run = build_run(parse_config(config))
    open_workdir(workdir, run, False)
    return train(run, workdir)


@pytest.mark.slow
def test_a_run_without_a_critic(tmp_path):
    config = tiny(iterations=2)
    config.algorithm = "grpo"
    config.critic.warmup = 5  # of a critic that is not there
    config.advantage.group.normalize = False
    results = run_in(tmp_path, config)
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert not [key for row in rows for key in row if "critic" in key]
    assert rows[1]["policy/gradient_norm"] > 0.0
    assert 0.0 <= results["in_domain"]["after"] <= 1.0
    assert "<html" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_an_advantage_of_ones_own_makes_an_algorithm(tmp_path, monkeypatch):
    """REINFORCE with the reward as every token's advantage, and a setting of its own."""
    (tmp_path / "reinforce_part.py").write_text(REINFORCE)
    monkeypatch.syspath_prepend(tmp_path)
    config = tiny(iterations=1)
    config.critic.name = "none"
    config.advantage.name = "reinforce_part:Reinforce"
    config.advantage.custom = {"scale": 2}
    try:
        assert parse_config(config).advantage.chosen.scale == 2.0
        run_in(tmp_path / "run", config)
    finally:
        sys.modules.pop("reinforce_part", None)
    rows = read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [0, 1] and rows[1]["policy/gradient_norm"] > 0.0
