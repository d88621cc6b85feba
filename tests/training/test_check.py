"""What --check prints of a run: its settings, its sizes, the memory of its programs."""

import dataclasses
import itertools
import re

import jax
import pytest
from training.test_loop import tiny

from dfpo_jax.training import check
from dfpo_jax.training.config import parse_config
from dfpo_jax.training.config_diff import flatten
from dfpo_jax.training.run import build_run

CHOICES = ("plan", "critic", "advantage", "objective")
CUSTOM = {f"{section}.custom" for section in CHOICES}  # {} too, and a setting


@pytest.fixture(scope="module")
def run():
    return build_run(parse_config(tiny()))


def parted(config):
    """Names and values under "differ", "defaults" and "not read"."""
    lines = list(check.settings(config))
    heads = [index for index, line in enumerate(lines) if not line.startswith("  ")]
    assert [lines[index] for index in heads] == [
        "settings that differ from the defaults:",
        "defaults:",
        "not read by this run:",
    ]
    found = [line.strip().split(" = ", 1) for line in lines if line.startswith("  ")]
    parts = dataclasses.asdict(config)
    empty = {f"{section}.{part}" for section in CHOICES for part in parts[section]}
    empty = {name for name in empty if flatten(parts).get(name) == {}} - CUSTOM
    settings = flatten(parts).keys() - empty
    assert sorted(name for name, _ in found) == sorted(settings)
    cuts = [*heads, len(lines)]
    return [
        dict(line.strip().split(" = ", 1) for line in lines[first + 1 : last])
        for first, last in itertools.pairwise(cuts)
    ]


def test_settings_that_differ_come_first_and_none_is_left_out(run):
    changed, default, unread = parted(run.config)
    assert changed["rewards.flip.false_positive"] == "0.2" and changed["model.d_model"] == "16"
    assert default["task.name"] == "'reasoning_gym'" and default["seed"] == "0"
    assert default["rewards.flip.false_negative"] == "0.0"
    assert default["critic.flow.num_samples"] == "8" and default["algorithm"] == "'dfpo'"
    assert {"critic.scalar.value_clip", "advantage.sigma.lambda_"} <= set(unread)
    read = ("objective.clip.", "objective.kl.", "objective.entropy.", "critic.flow.")
    assert not [name for name in unread if name.startswith(read)]


def test_defaults_are_those_of_the_preset_and_what_is_not_read_comes_last():
    config = tiny()
    config.algorithm = "grpo"
    config.critic.flow.num_samples = 3
    config.critic_optimizer.learning_rate = 0.5
    config.advantage.group.normalize = False
    changed, default, unread = parted(parse_config(config))
    assert (default["critic.name"], default["advantage.name"]) == ("'none'", "'group'")
    assert "algorithm" in changed and changed["advantage.group.normalize"] == "False"
    assert unread["critic.flow.num_samples"] == "3" and unread["critic.trunk"] == "'own'"
    assert unread["critic_optimizer.learning_rate"] == "0.5"
    assert unread["evaluation.critic_prompts"] == "4" and "evaluation.prompts" in changed
    # Another part than the preset's is a change.
    config = tiny()
    config.algorithm = "ppo"
    config.critic.name = "flow"
    changed, default, unread = parted(parse_config(config))
    assert changed["critic.name"] == "'flow'" and default["critic.flow.num_steps"] == "4"
    assert "critic.scalar.value_clip" in unread


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
        # What is free follows where the host says it.
        total, part, *free = map(float, re.findall(r"([\d.e-]+) (?:GiB|of it)", line))
        assert 0 < part < total and all(total < x for x in free)


@pytest.mark.slow
def test_devices_that_only_sample_are_asked_about_sampling():
    config = tiny(behaviour_lag=1)
    config.mesh.rollout = 2
    lines = list(check.describe(build_run(parse_config(config))))
    assert lines[lines.index("devices that only sample: 2") - 1].startswith("devices: 1 x cpu")
    bytes_ = {
        line.split(":")[0]: float(re.search(r"([\d.e-]+) GiB per device", line)[1])
        for line in lines
        if "GiB per device, " in line
    }
    # They hold the policy alone, without critic and optimizers.
    assert bytes_["sample"] < 0.5 * bytes_["prepare"]


@pytest.mark.slow
def test_partial_rollouts_are_asked_about_the_longest_responses_that_go_on():
    config = tiny()
    config.sampling.max_new_tokens = 4
    config.partial.update(tokens=2, spare=3)
    run = build_run(parse_config(config))
    lowered = check.Programs(run.config, run.learner).lower("sample")
    shapes = [x.shape for x in jax.tree.leaves(lowered.in_avals) if x.shape and x.ndim == 2]
    assert shapes[-2:] == [((4 + 3) * 2, 6 + 2)] * 2  # rows; prompt and the first two tokens
    assert lowered.out_info.tokens.shape == (14, 2)


def test_a_program_that_does_not_fit_is_named(run, monkeypatch):
    monkeypatch.setattr(check, "free_bytes", lambda device: 2**10)
    lines = check.describe(run)
    with pytest.raises(MemoryError, match="^sample, prepare, train would not fit"):
        for line in lines:
            last = line
    assert last.startswith("train: ") and last.endswith("9.54e-07 GiB are free: too large")
