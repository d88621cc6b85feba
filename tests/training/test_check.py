"""What --check prints of a run: its settings, its sizes, the memory of its programs."""

import dataclasses
import re

import jax
import pytest
from training.test_loop import tiny

from dfpo_jax.training import check
from dfpo_jax.training.config import parse_config
from dfpo_jax.training.config_diff import flatten
from dfpo_jax.training.run import build_run


@pytest.fixture(scope="module")
def run():
    return build_run(parse_config(tiny()))


def test_settings_that_differ_come_first_and_none_is_left_out(run):
    lines = list(check.settings(run.config))
    start = lines.index("defaults:")
    assert lines[0] == "settings that differ from the defaults:"
    assert "  rewards.flip.false_positive = 0.2" in lines[1:start]
    assert "  model.d_model = 16" in lines[1:start]
    assert "  task.name = 'reasoning_gym'" in lines[start:]
    assert "  seed = 0" in lines[start:] and "  rewards.flip.false_negative = 0.0" in lines[start:]
    names = [line.split(" = ")[0].strip() for line in lines if " = " in line]
    assert sorted(names) == sorted(flatten(dataclasses.asdict(run.config)))


@pytest.mark.slow
def test_parameters_are_counted_and_programs_say_their_memory(run):
    lines = list(check.describe(run))
    state = run.learner.start(jax.random.key(0))
    for name, params in state.params.items():
        count = sum(x.size for x in jax.tree.leaves(params))
        assert f"parameters of the {name}: {count:,}" in lines
    programs = [line for line in lines if "GiB per device, " in line]
    assert [line.split(":")[0] for line in programs] == ["sample", "prepare", "train"]
    for line in programs:
        total, part = map(float, re.findall(r"([\d.e-]+) (?:GiB|of it)", line))
        assert 0 < part < total


def test_a_program_that_does_not_fit_is_named(run, monkeypatch):
    monkeypatch.setattr(check, "free_bytes", lambda device: 2**10)
    lines = check.describe(run)
    with pytest.raises(MemoryError, match="^sample, prepare, train would not fit"):
        for line in lines:
            last = line
    assert last.startswith("train: ") and last.endswith("9.54e-07 GiB are free: too large")
