"""The benchmarks run, at small sizes, and the memory of the loss keeps its bound at full size."""

import dataclasses

import pytest
from _benchmark import language_model, verifiers

from dfpo_jax.tasks import Item
from dfpo_jax.tasks.verifiers import Verifier, VerifierConfig


@pytest.fixture
def small(monkeypatch):
    sizes = {"vocab_size": 512, "d_model": 36, "head_dim": 4, "num_layers": 2, "d_ff": 64}
    config = dataclasses.replace(language_model.SMOLLM2, **sizes)
    monkeypatch.setattr(language_model, "SMOLLM2", config)


@pytest.mark.parametrize(
    ("name", "figure"),
    [
        ("generation", "torch/dfpo_jax"),
        ("ragged", "to_limit/ragged_16_slots"),
        ("log_probs", "dfpo_jax/torch"),
    ],
)
def test_language_model_benchmarks(small, name, figure):
    pytest.importorskip("torch")
    found = language_model.BENCHMARKS[name](1)
    assert found[figure] > 0
    if name == "ragged":
        assert 10 < found["mean_length"] < 22  # of 64; geometric with mean 16, cut at 64


def test_every_verifier_is_timed_on_right_and_wrong_responses(monkeypatch):
    monkeypatch.setattr(verifiers, "_ROWS", dict.fromkeys(verifiers.CASES, 16))
    rates = verifiers.verifiers(1)
    assert {"number_per_second", "choice_per_second"} <= set(rates)
    assert all(rate > 0.0 for rate in rates.values())
    for name, (extract, response, answer) in verifiers.CASES.items():
        if name != "math_verify":
            verifier = Verifier(VerifierConfig(name, extract), "test")
            (verdict,) = verifier.judge([Item("?", answer.format(7, 7))], [response.format(7, 7)])
            assert verdict.reward == 1.0


def test_the_loss_in_pieces_takes_a_third_of_the_memory():
    assert language_model.loss_memory(0)["chunked/whole"] <= 0.35
