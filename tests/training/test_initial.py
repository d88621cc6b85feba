"""What the reward chain makes of the first policy: a whole run, exact resume, refusals."""

import json
import shutil

import pytest
from tiny_run import tiny

from dfpo_jax.training import initial
from dfpo_jax.training.config import parse_config
from dfpo_jax.training.loop import train
from dfpo_jax.training.metrics import read_metrics
from dfpo_jax.training.run import build_run
from dfpo_jax.training.workdir import open_workdir


def voting():
    """One-token responses of a policy that changes much, so that some equal their label."""
    config = tiny(prompts=8, samples=4)
    config.algorithm = "grpo"
    config.rewards.flip.false_positive = 0.0
    config.rewards.votes.samples = 6
    config.task.verifier.update(name="exact", extract="none")
    config.sampling.max_new_tokens = 1
    config.warm_start.update(steps=0)
    config.policy_optimizer.learning_rate = 0.03
    config.evaluation.out_of_domain = False
    return config


def run_in(workdir, config, resume=False):
    run = build_run(parse_config(config))
    open_workdir(workdir, run, resume)
    return train(run, workdir)


def without_times(rows):
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


@pytest.mark.slow
def test_a_run_on_votes_resumes_exactly_and_refuses_damaged_labels(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_in(whole, voting())
    path = whole / initial.FILE
    rewards = [row["rollout/reward"] for row in read_metrics(whole)[1:]]
    clean = [row["rollout/clean_reward"] for row in read_metrics(whole)[1:]]
    assert any(rewards) and rewards != clean
    made = json.loads(path.read_text())["made"]["votes"]
    run = build_run(parse_config(voting()))
    assert list(made["labels"]) == [item.prompt for item in initial.drawn_prompts(run)]
    share = 100 * made["right"] / len(made["labels"])
    words = f"right for {share:.3g}% of {len(made['labels'])} prompts"
    assert words in (whole / "report.html").read_text()

    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / "4")
    written = (parts / initial.FILE).read_text()
    (parts / initial.FILE).write_text(written.replace('"right": ', '"right": 1'))
    with pytest.raises(ValueError, match=f"{initial.FILE} is not as it was written; restore it"):
        run_in(parts, voting(), resume=True)
    (parts / initial.FILE).unlink()
    with pytest.raises(ValueError, match=f"{initial.FILE} is missing, which config.rewards needs"):
        run_in(parts, voting(), resume=True)
    (parts / initial.FILE).write_text(written)
    longer = voting()
    longer.train.iterations = 40
    with pytest.raises(ValueError, match=r"rewards.votes has no label for .* train.iterations"):
        run_in(parts, longer, resume=True)
    run_in(parts, voting(), resume=True)
    assert (parts / initial.FILE).read_text() == written
    samples = [(directory / "samples.jsonl").read_bytes() for directory in (whole, parts)]
    assert samples[0] == samples[1]
    assert without_times(read_metrics(parts)) == without_times(read_metrics(whole))


@pytest.mark.slow
def test_a_run_on_a_learned_reward_model_resumes_exactly(tmp_path):
    config, whole = voting(), tmp_path / "whole"
    config.rewards.votes.samples = 0
    config.rewards.learned.update(samples=64, prompts=20, hidden=8)
    config.task.verifier.update(name="number", tolerance=0.6)
    run_in(whole, config)
    made = json.loads((whole / initial.FILE).read_text())["made"]["learned"]
    assert 0.70 <= made["accuracy"] <= 0.74
    figures = f"{100 * made['accuracy']:.3g}% of the time (area under the curve {made['area']:.3g})"
    assert figures in (whole / "report.html").read_text()
    rows = read_metrics(whole)[1:]
    assert all(0.0 < row["rollout/reward"] < 1.0 and row["rollout/reward_std"] > 0 for row in rows)

    parts = shutil.copytree(whole, tmp_path / "parts")
    shutil.rmtree(parts / "checkpoints" / "4")
    run_in(parts, config, resume=True)
    samples = [(directory / "samples.jsonl").read_bytes() for directory in (whole, parts)]
    assert samples[0] == samples[1]
    assert without_times(read_metrics(parts)) == without_times(read_metrics(whole))
    config.rewards.learned.update(samples=0, prompts=512, hidden=32)
    with pytest.raises(ValueError, match="the saved train state differs"):
        run_in(parts, config, resume=True)


SETTINGS = {"votes": {"samples": 2}}


def test_what_was_made_is_read_as_it_was_written(tmp_path):
    path, made = tmp_path / initial.FILE, {"votes": {"labels": {"é=": None, "b": "1"}, "x": 0.1}}
    initial.write(path, SETTINGS, made)
    assert initial.read(path, SETTINGS) == made and list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match=r"made with config.rewards .*2.*, and they are .*3"):
        initial.read(path, {"votes": {"samples": 3}})
    text = path.read_text()
    for damaged, said in (
        (text[:40], "is not a JSON file, or is cut off"),
        (text.replace('"1"', '"2"'), "is not as it was written"),
        (text.replace("sha256", "sha1"), "has no 'sha256'"),
        ("[]", "it must be a JSON object"),
    ):
        path.write_text(damaged)
        with pytest.raises(
            ValueError, match=f"{said}.*; restore it from a copy, or start"
        ) as error:
            initial.read(path, SETTINGS)
        assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_plan_that_draws_unforeseen_prompts_is_refused():
    config = voting()
    config.plan.name = "elimination"
    with pytest.raises(ValueError, match="'elimination' and the prompts of chain_sum are endless"):
        build_run(parse_config(config))
