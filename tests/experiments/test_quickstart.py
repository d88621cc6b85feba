"""The quickstart's critic knows its prompts, and its policy learns in spite of the noise."""

import runpy
from pathlib import Path

import pytest

from dfpo_jax.training.config import parse_config
from dfpo_jax.training.loop import train
from dfpo_jax.training.metrics import read_metrics
from dfpo_jax.training.run import build_run

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "quickstart.py"


@pytest.mark.slow
def test_predicted_laws_differ_between_prompts_as_observed_ones_do(tmp_path):
    config = runpy.run_path(str(CONFIG))["get_config"]()
    config.seed, config.train.iterations = 1, 30
    config.mesh.update(data=1, fsdp=1)  # eight virtual devices would be in one another's way
    config.log.update(tensorboard=False, samples=0)
    results = train(build_run(parse_config(config)), tmp_path)
    last = read_metrics(tmp_path)[-1]
    assert last["eval/critic/spread"] >= 0.5
    assert last["eval/critic/correlation"] >= 0.5
    for name, gain in (("in_domain", 0.05), ("out_of_domain", 0.1)):
        before, after = results[name]["before"], results[name]["after"]
        assert 0.2 < before < 0.7 and after > before + gain
