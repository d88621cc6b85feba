"""A run with a sampling plan of the user's own, which draws two rounds."""

import pytest
from training.test_loop import run_in, without_times
from training.test_loop import tiny as tiny_run

from dfpo_jax.training import loop
from dfpo_jax.training.metrics import read_metrics


def two_rounds():
    config = tiny_run(iterations=3)
    config.plan.name = "toy_parts:Better"
    config.checkpoint.every = 1
    return config


@pytest.mark.slow
def test_a_resumed_run_repeats_an_uninterrupted_one(tmp_path, monkeypatch):
    real, whole, parts = loop.iteration, tmp_path / "whole", tmp_path / "parts"

    def dies(run, state, rollouts):
        if int(state.step) == 2:
            raise KeyboardInterrupt
        return real(run, state, rollouts)

    results = run_in(whole, two_rounds())
    with monkeypatch.context() as patch:
        patch.setattr(loop, "iteration", dies)
        with pytest.raises(KeyboardInterrupt):
            run_in(parts, two_rounds())
    assert [row["step"] for row in read_metrics(parts)] == [0, 1, 2]
    resumed = run_in(parts, two_rounds(), resume=True)
    rows = without_times(read_metrics(whole))
    assert without_times(read_metrics(parts)) == rows
    assert (parts / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
    assert resumed["in_domain"] == results["in_domain"]
    # The rounds have random numbers of their own: some responses of the second are better.
    assert any(0.0 < row["plan/replaced"] < 1.0 for row in rows[1:])
