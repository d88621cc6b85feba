"""Tokens per second and the share of the peak, against counts by hand."""

import dataclasses

import numpy as np
import pytest
import tiny

from dfpo_jax.training import speed

PHASES = {"devices": 2, "waited": 1.5, "sampled": 2.0, "prepared": 0.5, "updated": 4.0}


def test_tokens_per_second_and_padding():
    rollout = tiny.ragged_rollout()
    responses, prompts = rollout.mask.sum(), rollout.prompt_mask.sum()
    found = speed.speed_metrics(rollout, tiny.DECODER, {}, 3, **PHASES)
    assert found == {
        "time/wait_seconds": 1.5,
        "time/sample_seconds": 2.0,
        "time/prepare_seconds": 0.5,
        "time/update_seconds": 4.0,
        "time/sampled_tokens_per_second": pytest.approx(responses / 2),
        "time/trained_tokens_per_second": pytest.approx(3 * (prompts + responses) / 4),
        "time/padding": pytest.approx(1 - (prompts + responses) / (8 * 9)),
    }


@pytest.mark.parametrize("tied", [True, False])
def test_the_share_of_the_peak(monkeypatch, tied):
    """6 operations per parameter of a product and token, 12 per unit of width and column."""
    monkeypatch.setattr(speed, "PEAKS", {"cpu": 1e9})
    model = dataclasses.replace(tiny.DECODER, tie_embeddings=tied)
    table = np.zeros((model.vocab_size, model.d_model))
    params = {"policy": {"embedding": table, "kernel": np.zeros((7, 11))}}
    rollout = tiny.ragged_rollout()
    tokens = rollout.mask.sum() + rollout.prompt_mask.sum()
    products = 77 + (table.size if tied else 0)
    each = 6 * products + 12 * 2 * (2 * 8) * tokens / 8
    found = speed.speed_metrics(rollout, model, params, 1, **PHASES)
    assert found["time/flops_utilisation"] == pytest.approx(each * tokens / 4 / (2 * 1e9))


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("cpu", None),
    ],
)
def test_peaks_by_the_names_that_jax_gives(kind, peak):
    assert next((x for name, x in speed.PEAKS.items() if name in kind), None) == peak
