"""The quickstart's critic knows its prompts, and its policy learns in spite of the noise."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from devices import of_a_user

from dfpo_jax.training.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_predicted_laws_differ_between_prompts_as_observed_ones_do(tmp_path):
    settings = {"seed": 1, "train.iterations": 30, "log.tensorboard": False, "log.samples": 0}
    command = [sys.executable, "experiments/train.py", "--config=configs/quickstart.py"]
    command += [f"--workdir={tmp_path}", *(f"--config.{k}={v}" for k, v in settings.items())]
    options = {"capture_output": True, "text": True, "cwd": ROOT, "timeout": 1200}
    done = subprocess.run(command, env=of_a_user(), **options)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    last = read_metrics(tmp_path)[-1]
    assert last["eval/critic/spread"] >= 0.5
    assert last["eval/critic/correlation"] >= 0.5
    for name, gain in (("in_domain", 0.05), ("out_of_domain", 0.1)):
        before, after = results[name]["before"], results[name]["after"]
        assert 0.2 < before < 0.7 and after > before + gain
