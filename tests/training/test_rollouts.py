"""Rollouts that are collected beside the updates of the iteration before."""

import threading
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tiny_run import tiny
from training.test_loop import run_in, without_times

from dfpo_jax.sharding import copied_to, create_mesh, create_meshes, lies_elsewhere
from dfpo_jax.training import loop, rollouts
from dfpo_jax.training.config import parse_config
from dfpo_jax.training.learner import Learner
from dfpo_jax.training.metrics import read_metrics


def lagging(**mesh):
    config = tiny(behaviour_lag=1)
    config.algorithm = "ppo"
    config.warm_start.steps = 0
    config.mesh.update(**mesh)
    return config


@pytest.fixture
def meeting(monkeypatch):
    """Updates that wait until the next rollout is being drawn."""
    begun = {step: threading.Event() for step in range(5)}
    draw, update = rollouts.draw, Learner.update

    def drawn(*arguments, **options):
        begun[arguments[6]].set()
        return draw(*arguments, **options)

    def updated(self, state, *more):
        step = int(state.step)
        assert step == 3 or begun[step + 1].wait(60)
        return update(self, state, *more)

    monkeypatch.setattr(rollouts, "draw", drawn)
    monkeypatch.setattr(Learner, "update", updated)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{}, {"fsdp": 2, "tensor": 2, "rollout": 4}])
def test_rollouts_beside_updates_are_those_of_one_after_the_other(
    mesh, meeting, tmp_path, monkeypatch
):
    beside, resumed, alone = (tmp_path / name for name in ("beside", "resumed", "alone"))
    run_in(beside, lagging(**mesh))
    real = loop.iteration

    def dies(run, state, source):
        if int(state.step) == 3:
            raise KeyboardInterrupt
        return real(run, state, source)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "iteration", dies)
        with pytest.raises(KeyboardInterrupt):
            run_in(resumed, lagging(**mesh))
    run_in(resumed, lagging(**mesh), resume=True)
    monkeypatch.undo()  # updates no longer wait
    monkeypatch.setattr(rollouts, "samples_beside_training", lambda run: False)
    run_in(alone, lagging(**mesh))
    expected = without_times(read_metrics(alone))
    assert [row["step"] for row in expected] == [0, 1, 2, 3, 4]
    for path in (beside, resumed):
        assert without_times(read_metrics(path)) == expected
        assert (path / "samples.jsonl").read_bytes() == (alone / "samples.jsonl").read_bytes()


@pytest.mark.slow
def test_what_fails_beside_updates_ends_the_run_behind_them(tmp_path, monkeypatch):
    draw = rollouts.draw

    def drawn(*arguments, **options):
        if arguments[6] == 2:
            raise ValueError("no such reward")
        return draw(*arguments, **options)

    monkeypatch.setattr(rollouts, "draw", drawn)
    with pytest.raises(ValueError, match="no such reward"):
        run_in(tmp_path, lagging())
    assert [row["step"] for row in read_metrics(tmp_path)] == [0, 1, 2]
    monkeypatch.undo()
    run_in(tmp_path, lagging(), resume=True)
    assert [row["step"] for row in read_metrics(tmp_path)] == [0, 1, 2, 3, 4]


def test_devices_that_only_sample_are_the_last_ones():
    train, sample = create_meshes(1, -1, 2, 4)
    assert dict(train.shape) == {"data": 1, "fsdp": 2, "tensor": 2}
    assert dict(sample.shape) == {"data": 1, "fsdp": 2, "tensor": 2}
    assert sorted(d.id for d in train.devices.flat) == [0, 1, 2, 3]
    assert sorted(d.id for d in sample.devices.flat) == [4, 5, 6, 7]
    both = create_meshes(2, 2, 2, 0)
    assert both[0] is both[1]
    with pytest.raises(ValueError, match="rollout is 8; it must be less than the device count, 8"):
        create_meshes(1, 1, 1, 8)
    with pytest.raises(ValueError, match="rollout is 3; .* a multiple of mesh.tensor, 2"):
        create_meshes(1, -1, 2, 3)
    with pytest.raises(ValueError, match="exceeds the device count, 4"):
        create_meshes(2, 2, 2, 4)


def test_copies_outlive_a_donation_and_lie_along_the_same_axes():
    train, sample = create_mesh(2, 2, devices=jax.devices()[:4]), create_meshes(1, 1, 1, 3)[1]
    spec = jax.sharding.PartitionSpec("fsdp", ("data", "tensor"))
    for size, kept in ((6, "fsdp"), (4, None)):  # three devices do not divide four
        x = np.arange(2.0 * size).reshape(size, 2)
        placed = jax.device_put(x, jax.sharding.NamedSharding(train, spec))
        assert lies_elsewhere([placed], sample) and not lies_elsewhere([placed], train)
        here, there = copied_to(placed, train), copied_to(placed, sample)
        assert here.sharding == placed.sharding and there.sharding.mesh == sample
        assert there.sharding.spec[0] == kept
        jax.jit(lambda x: x + 1.0, donate_argnums=0)(placed)
        assert placed.is_deleted()
        np.testing.assert_array_equal(here, x)
        np.testing.assert_array_equal(there, x)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mesh.rollout": -1}, "rollout is -1; it must lie in"),
        ({"mesh.rollout": 2}, "mesh.rollout is 2 and train.behaviour_lag 0; .* at least 1"),
        (
            {"mesh.rollout": 2, "train.behaviour_lag": 1, "rewards.learned.samples": 2},
            "mesh.rollout is 2 and rewards.learned.samples 2; .* mesh.rollout must be 0",
        ),
    ],
)
def test_wrong_settings_are_one_line(settings, message):
    config = tiny()
    config.update_from_flattened_dict(settings)
    with pytest.raises(ValueError, match=message) as error:
        parse_config(config)
    assert "\n" not in str(error.value)


def test_prompts_of_the_next_iteration_are_encoded_before_it_is_asked_for(monkeypatch):
    encoded, collected = [], []
    task = SimpleNamespace(batch=lambda step, count: [(step, n) for n in range(count)])
    sampler = SimpleNamespace(prompts=encoded.extend)
    run = SimpleNamespace(config=parse_config(tiny(iterations=2)), sampler=sampler, train_task=task)
    monkeypatch.setattr(rollouts, "samples_beside_training", lambda run: False)
    monkeypatch.setattr(rollouts, "sampling_policy", lambda state: None)
    monkeypatch.setattr(rollouts, "states_of", lambda run, state: None)
    monkeypatch.setattr(
        rollouts, "_collect", lambda run, step, *more: collected.append((step, list(encoded)))
    )
    with rollouts.Rollouts(run) as source:
        for step in (0, 1):
            state = SimpleNamespace(step=step, unfinished=None)
            source.take(state)
            source.begin(state)
    assert collected == [(0, []), (1, [(1, n) for n in range(4)])]  # and none after the last one
