"""Runs whose responses outlast an iteration."""

import pytest
from tiny_run import tiny
from training.test_loop import run_in, without_times

from dfpo_jax.training import loop
from dfpo_jax.training.config import parse_config
from dfpo_jax.training.config_diff import changed_settings
from dfpo_jax.training.metrics import read_metrics


def partial(lag=0, rounds=0, **mesh):
    config = tiny(behaviour_lag=lag, iterations=6)
    config.algorithm = "ppo"
    config.objective.importance_cap = 2.0
    config.warm_start.steps = 60  # so that many responses end early
    config.warm_start.optimizer.learning_rate = 1e-2
    config.evaluation.update(every=0)
    config.sampling.max_new_tokens = 8
    config.partial.update(tokens=2, spare=2, rounds=rounds)
    config.mesh.update(**mesh)
    return config


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{}, {"lag": 1, "fsdp": 2, "rollout": 2}, {"rounds": 1}],
    ids=["", "beside training", "one round"],
)
def test_a_resumed_run_goes_on_with_what_was_unfinished(settings, tmp_path, monkeypatch):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run_in(whole, partial(**settings))
    real = loop.iteration

    def dies(run, state, source):
        if int(state.step) == 3:  # the checkpoint is of step 2
            raise KeyboardInterrupt
        return real(run, state, source)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "iteration", dies)
        with pytest.raises(KeyboardInterrupt):
            run_in(resumed, partial(**settings))
    run_in(resumed, partial(**settings), resume=True)
    rows = without_times(read_metrics(whole))
    assert without_times(read_metrics(resumed)) == rows
    assert (resumed / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
    assert any(row["partial/unfinished"] > 0 for row in rows[1:])
    assert any(row["partial/older_tokens"] > 0 for row in rows[2:])
    if "rounds" in settings:
        assert all(row["partial/rounds"] == 1 for row in rows[1:])
        assert any(row["partial/cut"] > 0 for row in rows[1:])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"partial.tokens": 3}, "partial.tokens is 3 and sampling.max_new_tokens 8; it must be"),
        ({"partial.tokens": 8}, "partial.tokens is 8 and sampling.max_new_tokens 8; it must be"),
        ({"plan.name": "refill"}, "partial.tokens is 2 and plan.name 'refill'; .* 'uniform'"),
        (
            {"log_probs.recompute": False, "objective.importance_cap": 0.0},
            "partial.tokens is 2 and log_probs.recompute False; .* must be True",
        ),
    ],
)
def test_wrong_settings_are_one_line(settings, message):
    config = partial()
    config.update_from_flattened_dict(settings)
    with pytest.raises(ValueError, match=message) as error:
        parse_config(config)
    assert "\n" not in str(error.value)


def test_a_started_run_keeps_the_shapes_of_what_is_unfinished():
    old = partial().to_dict()
    for section, setting, value in (
        ("partial", "tokens", 4),
        ("partial", "spare", 1),
        ("train", "samples", 4),
        ("sampling", "max_new_tokens", 4),
    ):
        new = partial().to_dict()
        new[section][setting] = value
        with pytest.raises(ValueError, match=f"cannot change config.{section}.{setting}"):
            changed_settings(old, new)
    free = partial().to_dict()
    free["partial"]["rounds"] = 2
    assert changed_settings(old, free) == ["config.partial.rounds: 0 -> 2"]
    before = tiny().to_dict()
    after = {**tiny(samples=4).to_dict()}
    before.pop("partial")
    assert changed_settings(before, after) == ["config.train.samples: 2 -> 4"]
