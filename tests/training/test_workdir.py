"""The directory of a run: what begins there, what goes on, and what is refused."""

import json
import shutil

import jax
import numpy as np
import pytest
from training import test_lock
from training.test_loop import run_in, tiny, without_times

from dfpo_jax.training import config_diff, distributed
from dfpo_jax.training.config import parse_config
from dfpo_jax.training.loop import train
from dfpo_jax.training.metrics import read_metrics
from dfpo_jax.training.restore import load_run
from dfpo_jax.training.run import build_run
from dfpo_jax.training.workdir import open_workdir


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run of one iteration."""
    workdir = tmp_path_factory.mktemp("begun")
    run_in(workdir, tiny(iterations=1))
    return workdir


@pytest.fixture
def copy(begun, tmp_path):
    return shutil.copytree(begun, tmp_path / "copy")


def content(workdir):
    return {str(p): p.read_bytes() for p in workdir.rglob("*") if p.is_file()}


def reopen(workdir, config):
    open_workdir(workdir, build_run(parse_config(config)), resume=True)


def test_a_used_directory_is_refused_and_left_alone(copy):
    before = content(copy)
    with pytest.raises(ValueError, match="already contains a run; pass --resume"):
        run_in(copy, tiny())
    with pytest.raises(ValueError, match="metrics.jsonl is a file"):
        open_workdir(copy / "metrics.jsonl", build_run(parse_config(tiny())))
    assert content(copy) == before


def test_a_directory_in_use_is_refused_and_left_alone(copy):
    holder, _ = test_lock.hold(copy)
    try:
        before = content(copy)
        with pytest.raises(ValueError, match=f"is in use by process {holder.pid} on host "):
            reopen(copy, tiny(iterations=2))
        assert content(copy) == before
    finally:
        test_lock.end(holder)
    reopen(copy, tiny(iterations=2))
    assert json.loads((copy / "config.json").read_text())["train"]["iterations"] == 2


def test_a_run_whose_checkpoints_are_all_damaged_is_refused_and_left_alone(copy):
    for step in (copy / "checkpoints").iterdir():
        (step / "commit_success.txt").unlink()
    before = content(copy)
    message = r"no intact checkpoint in .* \(0: commit_success.txt is missing.*; 1: commit_success"
    with pytest.raises(FileNotFoundError, match=message):
        reopen(copy, tiny(iterations=2))
    (copy / "config.json").unlink()  # nothing says then what the run was
    with pytest.raises(FileNotFoundError, match=message):
        train(build_run(parse_config(tiny(iterations=2))), copy)
    assert content(copy) == {k: v for k, v in before.items() if not k.endswith("/config.json")}


@pytest.mark.parametrize("name", ["config.json", "before.json"])
def test_a_damaged_file_of_the_run_is_named(copy, name):
    (copy / name).write_text("")
    with pytest.raises(ValueError, match=rf"{name} is not a JSON file, or is cut off"):
        reopen(copy, tiny(iterations=2))


@pytest.mark.slow
def test_a_directory_in_which_nothing_began_is_free(tmp_path, monkeypatch):
    from dfpo_jax.training import loop

    def fails(run):
        raise ValueError("no such weights")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "first_policy", fails)
        with pytest.raises(ValueError, match="no such weights"):
            run_in(tmp_path, tiny(iterations=1))
    other = tiny(iterations=1)
    other.model.d_model = 32
    other.model.num_heads = 4
    run_in(tmp_path, other)
    assert json.loads((tmp_path / "config.json").read_text())["model"]["d_model"] == 32
    assert [row["step"] for row in read_metrics(tmp_path)] == [0, 1]


def test_a_resumed_run_says_what_changed(copy, caplog):
    changed = tiny(iterations=6)
    changed.policy_optimizer.learning_rate = 1e-5
    reopen(copy, changed)
    assert "config.train.iterations: 1 -> 6" in caplog.text
    assert "config.policy_optimizer.learning_rate: 0.0003 -> 1e-05" in caplog.text
    assert json.loads((copy / "config.0.json").read_text())["train"]["iterations"] == 1
    assert json.loads((copy / "config.json").read_text())["train"]["iterations"] == 6


def test_a_run_from_before_a_setting_existed_resumes_with_its_default(copy, caplog):
    path = copy / "config.json"
    old = json.loads(path.read_text())
    del old["model"]["lora"]
    path.write_text(json.dumps(old))
    reopen(copy, tiny(iterations=1))
    assert "changed since" not in caplog.text
    assert json.loads(path.read_text())["model"]["lora"]["rank"] == 0


def test_a_run_of_a_version_with_other_settings_is_refused_in_one_line(copy):
    path = copy / "config.json"
    saved = json.loads(path.read_text())
    for section in ("rewards", "advantage", "objective", "returns", "log_probs", "plan"):
        del saved[section]
    saved["critic"] = {"trunk": "own", "critic_lambda": 0.95, "warmup": 0, "loss_weight": 1.0}
    later = {"noise": {"false_positive": 0.2}, "policy": {"discount": 1.0}, "value_clip": 0.0}
    path.write_text(json.dumps(saved | later))
    before = content(copy)
    for read in (lambda: reopen(copy, tiny(iterations=2)), lambda: load_run(copy)):
        with pytest.raises(ValueError) as error:
            read()
        said = str(error.value)
        assert said.startswith(f"{path} does not fit this version: config.") and "\n" not in said
        assert said.endswith(
            "config.noise.false_positive is of an earlier version; it is now "
            "config.rewards.flip.false_positive"
        )
    assert content(copy) == before


def leaves(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


PLAIN = json.loads(json.dumps(parse_config(tiny()), default=lambda x: x.__dict__))
FIXED = [
    "critic.name",
    "critic.trunk",
    "critic.units",
    "evaluation.out_of_domain",
    "seed",
    *(x for x in leaves(PLAIN) if x.startswith(("model.", "tokenizer.", "weights."))),
]


@pytest.mark.parametrize("key", FIXED)
def test_what_a_started_run_cannot_change(key):
    new = json.loads(json.dumps(PLAIN))
    *sections, name = key.split(".")
    section = new
    for part in sections:
        section = section[part]
    section[name] = "other"
    if key in ("model.dtype", "model.remat", "model.attention", "model.max_positions"):
        assert config_diff.changed_settings(PLAIN, new) == [
            f"config.{key}: {PLAIN['model'][name]!r} -> 'other'"
        ]
        return
    with pytest.raises(ValueError, match=rf"a started run cannot change config\.{key}: "):
        config_diff.changed_settings(PLAIN, new)


def test_a_run_that_is_older_than_the_units_of_critics_goes_on_in_affine_ones():
    old, new = (json.loads(json.dumps(PLAIN)) for _ in range(2))
    del old["critic"]["units"]
    new["critic"]["units"] = "affine"
    assert config_diff.changed_settings(old, new) == []
    new["critic"]["units"] = "asinh"
    with pytest.raises(ValueError, match=r"config\.critic\.units: 'affine' -> 'asinh'"):
        config_diff.changed_settings(old, new)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            lambda c: c.objective.kl.update(coefficient=0.1),
            r"kl.coefficient: 0.0 -> 0.1.*reference/",
        ),
        (lambda c: c.critic.flow.head.update(hidden=24), r"hidden: 64 -> 24.*critic/.*head/"),
        (lambda c: c.policy_optimizer.update(clip_norm=0.0), r"clip_norm: 1.0 -> 0.0.*opt_state/"),
        (lambda c: c.critic_optimizer.update(name="adafactor"), r"'adafactor'.*opt_state/critic"),
        (lambda c: c.model.update(d_model=32), r"cannot change config\.model\.d_model"),
        (lambda c: c.evaluation.update(prompts=15), r"held-out prompts of in_domain, out_of_dom"),
        (lambda c: c.out_of_domain.update(seed=1), r"held-out prompts of out_of_domain are not"),
    ],
)
def test_what_cannot_go_on_is_refused_and_changes_nothing(copy, change, named):
    before, config = content(copy), tiny(iterations=2)
    change(config)
    with pytest.raises(ValueError, match=named):
        reopen(copy, config)
    assert content(copy) == before


def test_other_training_prompts_are_said(copy, caplog):
    config = tiny(iterations=2, prompts=8)
    reopen(copy, config)
    assert "changed since the run was started: the training prompts" in caplog.text


@pytest.mark.slow
def test_a_fixed_kl_coefficient_may_change(tmp_path):
    def config(iterations, coefficient):
        made = tiny(iterations=iterations)
        made.objective.kl.coefficient = coefficient
        return made

    run_in(tmp_path, config(1, 0.1))
    run_in(tmp_path, config(2, 0.7), resume=True)
    rows = read_metrics(tmp_path)
    assert [row["policy/kl_coefficient"] for row in rows[1:]] == pytest.approx([0.1, 0.7])


def test_processes_with_different_prompts_are_refused(monkeypatch):
    gathered = []

    def gather(value):
        gathered.append(value)
        return [value, gathered[0]]

    monkeypatch.setattr(distributed, "gather", gather)
    distributed.check_same("prompts", {"a": 1, "b": 2})
    distributed.check_same("prompts", {"b": 2, "a": 1})
    with pytest.raises(ValueError, match="of this run have different prompts; see there"):
        distributed.check_same("prompts", {"a": 1, "b": 3}, "; see there")


@pytest.mark.slow
def test_a_run_of_many_devices_is_read_on_those_that_there_are(tmp_path):
    config = tiny(iterations=1)
    config.mesh.update(data=1, fsdp=4, tensor=2)
    run_in(tmp_path, config)
    _, whole = load_run(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    saved["mesh"] = {"data": 4, "fsdp": 16, "tensor": 4}
    saved["train"]["samples"] = 1
    saved["train"]["prompts"] = 4  # 8 devices do not divide it
    (tmp_path / "config.json").write_text(json.dumps(saved))
    run, state = load_run(tmp_path)
    assert dict(run.learner.mesh.shape) == {"data": 1, "fsdp": 8, "tensor": 1}
    jax.tree.map(np.testing.assert_array_equal, state.params, whole.params)


@pytest.mark.slow
def test_a_copy_goes_on_as_its_original(copy, tmp_path):
    run_in(tmp_path / "whole", tiny(iterations=2))
    run_in(copy, tiny(iterations=2), resume=True)
    rows = [without_times(read_metrics(path))[-1] for path in (copy, tmp_path / "whole")]
    assert rows[0] == rows[1]
