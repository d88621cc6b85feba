"""Plans and corrections in a run: columns are checked before anything compiles."""

import json

import jax
import numpy as np
import pytest
from tiny_run import tiny

from dfpo_jax.training import loop
from dfpo_jax.training.config import parse_config
from dfpo_jax.training.programs import Programs
from dfpo_jax.training.rollouts import Rollouts
from dfpo_jax.training.run import build_run


@pytest.fixture
def config(tmp_path):
    """A run on sums in a file, with an expert's responses and error rates beside the answers."""
    rows = []
    for i in range(60):
        total, shares = i % 10 + i // 10, {"fp": 0.1 * (i % 3), "fn": 0.25}
        more = {"cot": f"{total}", "worse": f"-{total % 10}", "long": "123" if i % 20 == 7 else "1"}
        rows.append({"question": f"{i % 10}+{i // 10}=", "answer": str(total), **more, **shares})
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = tiny(iterations=2)
    found.algorithm = "ppo"
    found.task.update(name="jsonl", dataset=str(path), prompt="{question}", held_out_percent=25)
    found.task.parameters = {}
    found.rewards.flip.false_positive = 0.0
    found.warm_start.steps = 0
    found.evaluation.out_of_domain = False
    return found


def with_pairs(config):
    config.plan.name = "pairs"
    config.plan.pairs.update(chosen="answer", rejected="worse")
    config.train.frozen = ("policy",)
    return config


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"plan.name": "hybrid", "plan.hybrid.column": "proof"},
            "row of prompt '.*' has no 'proof', which plan.hybrid.column names; it has question, ",
        ),
        (
            {"plan.name": "hybrid", "plan.hybrid.column": "fp"},
            "character '.' at position 1 of '0.[12]' is not in the tokenizer's alphabet",
        ),
        (
            {"plan.name": "hybrid", "plan.hybrid.column": "long"},
            "answer '123' has 4 tokens with its end of sequence; max_new_tokens is 3",
        ),
        (
            {"plan.name": "pairs", "train.frozen": ("policy",)},
            "has no 'chosen', which plan.pairs.chosen names; it has question",
        ),
        (
            {"rewards.correction.false_positive_column": "rho0"},
            "has no 'rho0', which rewards.correction.false_positive_column names; it has question",
        ),
        (
            {"rewards.correction.false_positive_column": "cot"},
            "column 'cot', which rewards.correction.false_positive_column names, is '.*'; it must ",
        ),
    ],
)
def test_a_column_that_does_not_serve_is_one_line_before_anything_compiles(config, settings, said):
    for name, value in settings.items():
        config.update_from_flattened_dict({name: value})
    with pytest.raises(ValueError, match=said) as refused:
        build_run(parse_config(config))
    assert "\n" not in str(refused.value)


def test_tasks_without_columns_say_so():
    config = tiny()
    config.plan.name = "pairs"
    config.train.frozen = ("policy",)
    config.rewards.flip.false_positive = 0.0
    with pytest.raises(ValueError, match="plan.pairs.chosen is 'chosen'; prompt '.*' has no colum"):
        build_run(parse_config(config))


def test_rewards_that_a_plan_does_not_read_are_refused(config):
    config = with_pairs(config)
    config.rewards.flip.false_positive = 0.1
    with pytest.raises(ValueError, match=r"config.plan.name is 'pairs', which gives .*\(-1.0, 1.0"):
        build_run(parse_config(config))


def test_a_policy_does_not_learn_from_responses_that_were_given(config):
    config = with_pairs(config)
    config.train.frozen = ()
    with pytest.raises(
        ValueError, match=r"whose responses the policy did not sample.*name 'policy"
    ):
        build_run(parse_config(config))


def test_the_range_of_the_rewards_follows_from_all_rows_or_from_the_plan(config):
    config.rewards.correction.update(false_positive_column="fp", false_negative_column="fn")
    low, high = build_run(parse_config(config)).reward_range
    # rho0 of 0, 0.1 and 0.2, rho1 1/4: J is 3/4, 0.65 and 0.55.
    assert (low, high) == pytest.approx((-0.2 / 0.55, 0.8 / 0.55))
    config.rewards.correction.update(false_positive_column="", false_negative_column="")
    assert build_run(parse_config(config)).reward_range == (0.0, 1.0)
    run = build_run(parse_config(with_pairs(config)))
    assert run.reward_range == (-1.0, 1.0)
    # No sampled response has such a reward, so that there is nothing to measure the critic on.
    assert config.evaluation.critic_prompts > 0 and loop.evaluate_critic(run, None) == ({}, None)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"algorithm": "dapo", "train": {"samples": 1}},
            "config.plan.name is 'refill' and train.s",
        ),
        ({"algorithm": "reinforce_ada", "train": {"samples": 16}}, "'elimination' and train.sampl"),
        (
            {"plan": {"name": "pairs"}},
            "config.plan.name is 'pairs' and train.samples 4; it must be",
        ),
        (
            {"algorithm": "reinforce_ada", "plan": {"name": "uniform"}},
            "config.advantage 'pool' needs pool; .* given by plan 'elimination' with train.samples",
        ),
        (
            {"rewards": {"length": {"share": 0.2, "buffer": 2}}},
            "config.rewards.length.share is 0.2",
        ),
    ],
)
def test_settings_that_a_plan_cannot_use_are_one_line(settings, said):
    with pytest.raises(ValueError, match=said) as refused:
        parse_config(settings)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("algorithm", "plan", "there"),
    [("reinforce_ada", None, "baseline"), ("grpo", "hybrid", "expert"), ("grpo", None, "")],
)
def test_programs_take_what_the_plan_gives(config, algorithm, plan, there):
    config.algorithm = algorithm
    if plan is not None:
        config.plan.name = plan
    run = build_run(parse_config(config))
    programs = Programs(run.config, run.learner, minibatches=2)
    rollout = programs.rollout(8)
    assert rollout.samples == 2
    for name in ("baseline", "expert"):
        leaves = jax.tree.leaves(getattr(rollout, name))
        assert (len(leaves) > 0) == (name == there) and all(len(x.shape) > 0 for x in leaves)
    assert programs.round_samples == (8 if algorithm == "reinforce_ada" else 2)
    for name in ("prepare", "train"):
        programs.lower(name)


@pytest.mark.slow
def test_a_value_model_learns_which_response_is_preferred(config):
    """A model that is given pairs and no samples tells a right sum from a negative one."""
    config = with_pairs(config)
    config.update_from_flattened_dict({"train.prompts": 32})
    config.update_from_flattened_dict(
        {"train.iterations": 40, "critic_optimizer.learning_rate": 3e-3}
    )
    run = build_run(parse_config(config))
    state = run.learner.start(jax.random.key(0))
    policy = jax.tree.map(np.asarray, state.params["policy"])
    losses = []
    for _ in range(40):
        state, metrics, samples = loop.iteration(run, state, Rollouts(run))
        losses.append(metrics["critic/loss"])
        assert metrics["rollout/reward"] == 0.0 and metrics["rollout/reward_std"] == 1.0
    assert [x["reward"] for x in samples[:2]] == [1.0, -1.0]
    assert samples[0]["response"] == samples[0]["answer"] != samples[1]["response"]
    jax.tree.map(np.testing.assert_array_equal, policy, state.params["policy"])
    assert losses[-1] < 0.6 * losses[0]  # what the prompt alone says cannot be learned
