"""A whole run in miniature: files it leaves, exact repetition, exact resume, refusals."""

import contextlib
import dataclasses
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from tiny_run import tiny

from dfpo_jax import memory
from dfpo_jax.algorithms.interface import Observed
from dfpo_jax.training.config import parse_config
from dfpo_jax.training.config_diff import changed_settings
from dfpo_jax.training.glossary import described, sections
from dfpo_jax.training.json_lines import read_rows
from dfpo_jax.training.learner import Learner
from dfpo_jax.training.loop import train
from dfpo_jax.training.metrics import read_metrics
from dfpo_jax.training.preemption import Preempted, StopSignals
from dfpo_jax.training.run import build_run
from dfpo_jax.training.workdir import open_workdir


def without_times(rows):
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def run_in(workdir, config, resume=False):
    run = build_run(parse_config(config))
    open_workdir(workdir, run, resume)
    return train(run, workdir)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, run_in(workdir, tiny())


def test_a_run_leaves_results_report_metrics_and_checkpoints(finished):
    workdir, results = finished
    assert json.loads((workdir / "results.json").read_text()) == json.loads(json.dumps(results))
    for name in ("in_domain", "out_of_domain"):
        assert set(results[name]) == {"before", "after"}
        assert all(0.0 <= value <= 1.0 for value in results[name].values())
    assert results["seed"] == 0 and results["config"]["train"]["iterations"] == 4
    assert results["seconds"] > 0 and results["peak_memory_bytes"] > 2**20
    rows = read_metrics(workdir)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert "eval/in_domain/accuracy" in rows[0] and "eval/critic/crps" in rows[4]
    assert "critic/anchor" in rows[1] and "rollout/clean_reward" in rows[1]
    assert "noise/top_wrong_rate" in rows[1] and "rollout/zero_variance_groups" in rows[1]
    report = (workdir / "report.html").read_text()
    assert "<html" in report and "<dt><code>critic/anchor</code></dt><dd>How far the flow" in report
    samples = read_rows(workdir / "samples.jsonl")
    assert [row["step"] for row in samples] == [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4
    for row in samples:
        assert (row["clean_reward"] == 1.0) == (row["response"] == row["answer"])
        assert row["prompt"].endswith("=") and 0 < row["tokens"] <= 3
    assert (workdir / "checkpoints" / "4").is_dir()


def test_every_metric_of_a_run_is_described_and_the_loop_writes_those_it_describes(finished):
    names = {key for row in read_metrics(finished[0]) for key in row} - {"step"}
    known = described(parse_config(tiny()))
    assert names <= set(known)
    of_parts = {x.name for title, found in sections() if "`" in title for x in found}
    # These need other settings or, as rates of right responses do, luck; other tests write them.
    others = {"rollout/shortened_prompts", "objective/gradient_norm", "time/flops_utilisation"}
    others |= {f"policy/{x}" for x in ("weight", "squared_weight", "effective_samples")}
    others |= {f"partial/{x}" for x in ("rounds", "unfinished", "older_tokens", "cut")}
    others |= {f"policy/warmup_{x}" for x in ("best", "waited", "over")}
    missing = set(known) - of_parts - names
    assert {name for name in missing if not name.startswith("noise/")} == others


@pytest.mark.slow
def test_a_run_may_have_one_evaluation_set(tmp_path):
    config = tiny(iterations=1)
    config.out_of_domain.preset = "math500"  # on the hub, which nothing asks
    config.evaluation.out_of_domain = False
    results = run_in(tmp_path, config)
    assert "in_domain" in results and "out_of_domain" not in results
    assert not [key for row in read_metrics(tmp_path) for key in row if "out_of_domain" in key]
    assert "Out-of-domain" not in (tmp_path / "report.html").read_text()
    config.evaluation.out_of_domain = True
    with pytest.raises(ValueError, match="cannot change config.evaluation.out_of_domain"):
        changed_settings(results["config"], dataclasses.asdict(parse_config(config)))


@pytest.mark.slow
def test_the_same_seed_gives_identical_metrics(finished, tmp_path):
    run_in(tmp_path, tiny())
    assert without_times(read_metrics(tmp_path)) == without_times(read_metrics(finished[0]))


def test_a_stopped_run_resumes_exactly(finished, tmp_path, monkeypatch):
    from dfpo_jax.training import loop

    real = loop.iteration

    def dies(run, state, rollouts):
        if int(state.step) == 3:
            raise KeyboardInterrupt
        return real(run, state, rollouts)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "iteration", dies)
        with pytest.raises(KeyboardInterrupt):
            run_in(tmp_path, tiny())
    assert [row["step"] for row in read_metrics(tmp_path)] == [0, 1, 2, 3]
    resumed = run_in(tmp_path, tiny(), resume=True)
    samples = [(path / "samples.jsonl").read_bytes() for path in (tmp_path, finished[0])]
    assert samples[0] == samples[1]
    assert without_times(read_metrics(tmp_path)) == without_times(read_metrics(finished[0]))
    for name in ("in_domain", "out_of_domain"):
        assert resumed[name] == finished[1][name]


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_costs_its_iterations_alone(finished, tmp_path):
    copy = shutil.copytree(finished[0], tmp_path / "copy")
    newest = copy / "checkpoints" / "4"
    largest = max((path for path in newest.rglob("*") if path.is_file()), key=os.path.getsize)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    resumed = run_in(copy, tiny(), resume=True)
    samples = [(path / "samples.jsonl").read_bytes() for path in (copy, finished[0])]
    assert samples[0] == samples[1]
    assert without_times(read_metrics(copy)) == without_times(read_metrics(finished[0]))
    assert resumed["in_domain"] == finished[1]["in_domain"]
    aside = newest.with_name("4.damaged") / largest.relative_to(newest)
    assert aside.read_bytes() == data and newest.is_dir()


@pytest.mark.slow  # a start of the program
def test_a_second_run_is_refused_and_does_not_disturb_the_first(finished, tmp_path, monkeypatch):
    from dfpo_jax.training import loop

    real, root = loop.iteration, Path(__file__).resolve().parents[2]
    command = [sys.executable, "experiments/train.py", "--config=tests/tools/tiny_config.py"]
    refused = []

    def disturbed(run, state, rollouts):
        if int(state.step) == 2:
            for resume in (False, True):
                arguments = [f"--workdir={tmp_path}/../{tmp_path.name}", f"--resume={resume}"]
                done = subprocess.run(
                    [*command, *arguments], cwd=root, capture_output=True, text=True, timeout=300
                )
                refused.append((done.returncode, done.stderr))
        return real(run, state, rollouts)

    monkeypatch.setattr(loop, "iteration", disturbed)
    run_in(tmp_path, tiny())
    assert without_times(read_metrics(tmp_path)) == without_times(read_metrics(finished[0]))
    samples = [(path / "samples.jsonl").read_bytes() for path in (tmp_path, finished[0])]
    assert samples[0] == samples[1]
    assert [code for code, _ in refused] == [2, 2]
    for _, words in refused:
        assert words.splitlines()[-1].startswith("error: workdir ")
        assert f"is in use by process {os.getpid()} on host " in words


@pytest.mark.slow
def test_a_run_moves_from_eight_devices_to_four_to_one(finished, tmp_path):
    for iterations, mesh in ((2, (2, 2, 2)), (3, (1, 4, 1)), (4, (1, 1, 1))):
        config = tiny(iterations=iterations)
        config.mesh.update(data=mesh[0], fsdp=mesh[1], tensor=mesh[2])
        run_in(tmp_path, config, resume=True)
    rows, whole = (without_times(read_metrics(path)) for path in (tmp_path, finished[0]))
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    for row, expected in zip(rows, whole, strict=True):
        assert expected.keys() <= row.keys()
        for key in expected:
            assert row[key] == pytest.approx(expected[key], rel=2e-4, abs=1e-5), (row["step"], key)


@pytest.mark.slow
def test_sigterm_saves_the_state_and_the_run_goes_on(finished, tmp_path, monkeypatch):
    from dfpo_jax.training import loop

    real = loop.iteration

    def signalled(run, state, rollouts):
        if int(state.step) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(run, state, rollouts)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "iteration", signalled)
        with pytest.raises(Preempted, match="after iteration 3 of 4; state saved"):
            run_in(tmp_path, tiny())
    assert signal.getsignal(signal.SIGTERM) is before
    assert (tmp_path / "checkpoints" / "3").is_dir()
    run_in(tmp_path, tiny(), resume=True)
    assert without_times(read_metrics(tmp_path)) == without_times(read_metrics(finished[0]))
    elapsed = [row["time/elapsed_seconds"] for row in read_metrics(tmp_path)]
    assert elapsed == sorted(elapsed)


def test_a_second_signal_acts_at_once():
    # A shell that starts pytest in the background has it ignore SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with StopSignals() as signals:
            assert not signals.requested()
            os.kill(os.getpid(), signal.SIGINT)
            assert signals.requested()
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def break_units(monkeypatch, when):
    """In iterations for which `when` holds, no loss is finite."""
    real = Learner.observe

    def observe(learner, state, observed):
        state = real(learner, state, observed)
        if not when(int(state.step)):
            return state
        nan = jax.device_put(jnp.float32(jnp.nan), state.controls["value_scale"].sharding)
        return state.replace(controls={**state.controls, "value_scale": nan})

    monkeypatch.setattr(Learner, "observe", observe)


@pytest.mark.slow
def test_too_many_skipped_updates_end_the_run_on_the_last_good_checkpoint(
    finished, tmp_path, monkeypatch
):
    break_units(monkeypatch, lambda step: step >= 2)
    with pytest.raises(FloatingPointError, match=r"iteration 3: .* 4 in a row .* allows 3"):
        run_in(tmp_path, tiny())
    rows = read_metrics(tmp_path)
    assert [row["train/skipped_updates"] for row in rows[1:]] == [0.0, 0.0, 2.0]
    assert (tmp_path / "checkpoints" / "2").is_dir()
    monkeypatch.undo()
    run_in(tmp_path, tiny(), resume=True)
    assert without_times(read_metrics(tmp_path)) == without_times(read_metrics(finished[0]))


@pytest.mark.slow
def test_an_evaluation_that_fails_costs_no_iteration(finished, tmp_path, monkeypatch):
    from dfpo_jax.training import loop

    def fails(run, state):
        raise RuntimeError("the verifier's machine is gone")

    config = tiny()
    config.checkpoint.every = 0
    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate_critic", fails)
        with pytest.raises(RuntimeError, match="machine is gone"):
            run_in(tmp_path, config)
    assert [row["step"] for row in read_metrics(tmp_path)] == [0, 1, 2]
    assert (tmp_path / "checkpoints" / "2").is_dir()
    run_in(tmp_path, config, resume=True)
    last = [without_times(read_metrics(path))[-1] for path in (tmp_path, finished[0])]
    assert last[0] == last[1]


@pytest.mark.slow
def test_the_controller_moves_the_kl_coefficient_and_waits_where_nothing_was_learned(
    tmp_path, monkeypatch
):
    break_units(monkeypatch, lambda step: step == 1)
    config = tiny(iterations=3)
    config.objective.kl.update(coefficient=0.2, target=0.05, horizon=10)
    run_in(tmp_path, config)
    _, first, second, third = read_metrics(tmp_path)
    assert second["train/skipped_updates"] == 2 and math.isnan(second["policy/kl"])
    name = "policy/kl_coefficient"
    error = min(max(first["policy/kl"] / 0.05 - 1, -0.2), 0.2)  # arXiv 1909.08593, section 2.2
    assert first[name] == pytest.approx(0.2 * (1 + error / 10), rel=1e-6)
    assert second[name] == first[name] and math.isfinite(third[name]) and third[name] != first[name]


@contextlib.contextmanager
def compilations_logged():
    """As `jax.log_compiles`, but in all threads."""
    jax.config.update("jax_log_compiles", True)
    try:
        yield
    finally:
        jax.config.update("jax_log_compiles", False)


def compiled_once(records):
    """What was compiled: nothing twice in a thread, and no large program in two of them."""
    found = [(x.threadName, x.getMessage()) for x in records]
    found = [(thread, line) for thread, line in found if line.startswith("Compiling ")]
    assert len(found) == len(set(found))
    lines = [line for _, line in found]
    names = ("jit(_sample)", "jit(prepare)", "jit(update)")
    large = [line for line in lines if any(name in line for name in names)]
    assert len(large) == len(set(large))
    return lines


@pytest.mark.slow
def test_programs_compile_once_and_states_are_evaluated_once(tmp_path, caplog, monkeypatch):
    from dfpo_jax.training import loop

    steps, evaluate = [], loop.evaluate

    def counted(run, state):
        steps.append(int(state.step))
        return evaluate(run, state)

    monkeypatch.setattr(loop, "evaluate", counted)
    memory.clear_caches()
    config = tiny(iterations=3)
    config.evaluation.every = 1
    with compilations_logged(), caplog.at_level(logging.WARNING, logger="jax"):
        run_in(tmp_path, config)
    compiled = compiled_once(caplog.records)
    large = [line for line in compiled if "jit(_sample)" in line or "jit(update)" in line]
    assert len(large) == 4  # the loop's two, the warm start's and one for both evaluation sets
    assert steps == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.task.update(dataset="chain_summ"), "chain_sum"),
        (lambda c: c.train.update(prompt_length=4), "prompt_length is 4"),
        (lambda c: c.sampling.update(max_new_tokens=2), "max_new_tokens is 2"),
        (lambda c: c.model.update(vocab_size=5), "the tokenizer has"),
        (lambda c: c.tokenizer.update(alphabet="012+="), "'"),
        (lambda c: c.mesh.update(data=3), "must divide"),
        (lambda c: c.mesh.update(data=64), "exceeds the device count"),
        (lambda c: c.task.verifier.update(name="operator:neg"), "cannot be loaded: .* it takes"),
        (lambda c: c.task.verifier.update(name="builtins:max"), "fails on every one of 6 trial"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_compiles(change, message):
    config = tiny()
    change(config)
    with jax.log_compiles(False), pytest.raises(ValueError, match=message):
        build_run(parse_config(config))


def units(state):
    return float(state.controls["value_shift"]), float(state.controls["value_scale"])


def test_value_units_follow_the_range_or_the_rewards_seen():
    config = tiny()
    config.critic.units = "affine"
    run = build_run(parse_config(config))
    learner, state = run.learner, run.learner.start(jax.random.key(0))
    assert units(learner.observe(state, Observed([0.0, 5.0], (0.0, 1.0)))) == (0.5, 0.5)
    rewards = [float(x) for x in range(11)]
    first = learner.observe(state, Observed(rewards))
    assert units(first) == (5.0, 4.0)
    moved = learner.observe(first, Observed([x + 20.0 for x in rewards], first=False))
    assert units(moved) == pytest.approx((0.95 * 5 + 0.05 * 25, 4.0))
    assert units(learner.observe(state, Observed([2.0, 2.0])))[1] == pytest.approx(1e-3)


def test_rare_rewards_under_unbounded_noise_do_not_shrink_the_units():
    config = tiny()
    config.rewards.flip.false_positive = 0.0
    config.rewards.spike.probability = 0.1
    run = build_run(parse_config(config))
    assert run.reward_range is None and run.least_scale == 0.5
    assert run.clean_range == (0.0, 1.0)
    state, rewards = run.learner.start(jax.random.key(0)), [0.0] * 98 + [1.0, 40.0]
    observed = Observed(rewards, run.reward_range, run.least_scale)
    assert units(run.learner.observe(state, observed)) == (0.0, 0.5)
