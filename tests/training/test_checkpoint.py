"""Checkpoints: exact, on any mesh, the newest and the best kept, cut-off ones passed over."""

import resource

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import FLOW, Markov

from dfpo_jax.algorithms import AlgorithmConfig, compose
from dfpo_jax.critics import Critics
from dfpo_jax.objectives import Kl, Objectives
from dfpo_jax.sharding import create_mesh
from dfpo_jax.training.checkpoint import Checkpointer
from dfpo_jax.training.learner import Learner
from dfpo_jax.training.update import Schedule


def make_learner(*sizes):
    model = Markov()
    optimizers = {name: optax.adamw(0.1) for name in ("policy", "critic")}
    config = AlgorithmConfig(Critics("flow", flow=FLOW), objective=Objectives(kl=Kl(0.1)))
    algorithm = compose(model, config, 1.0)
    return Learner(model, algorithm, optimizers, Schedule(), create_mesh(*sizes))


@pytest.fixture(scope="module")
def learner():
    return make_learner(1, 1, 1)


@pytest.fixture(scope="module")
def state(learner):
    return learner.start(jax.random.key(0))


def at(state, step):
    return state.replace(step=jax.device_put(jnp.int32(step), state.step.sharding))


def leaves(state):
    return [
        np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
        for x in jax.tree.leaves(state)
    ]


def assert_same(state, other):
    assert jax.tree.structure(state) == jax.tree.structure(other)
    for a, b in zip(leaves(state), leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_state_comes_back_bit_by_bit_on_every_mesh(learner, state, tmp_path):
    checkpoints = Checkpointer(tmp_path)
    checkpoints.save(at(state, 3))
    checkpoints.close()
    for sizes in [(1, 8, 1), (2, 2, 2), (1, 1, 4), (1, 1, 1)]:
        other = make_learner(*sizes)
        checkpoints = Checkpointer(tmp_path)
        restored = checkpoints.restore(other.abstract_state)
        checkpoints.close()
        assert_same(at(state, 3), restored)
        for x, s in zip(*map(jax.tree.leaves, (restored, other.state_shardings)), strict=True):
            assert x.sharding.is_equivalent_to(s, x.ndim)


def test_a_checkpoint_holds_what_earlier_versions_wrote_and_nothing_else(state, tmp_path):
    """Restoring compares names, so that a new field would leave every older checkpoint behind."""
    checkpoints = Checkpointer(tmp_path)
    checkpoints.save(at(state, 3))
    checkpoints.close()
    arrays = Checkpointer(tmp_path).describe(3)
    known = {"step", "skipped", "params", "opt_state", "reference", "controls", "key"}
    assert {name.partition("/")[0] for name in arrays} == known
    (written,) = (tmp_path / "checkpoints" / "3").glob("*/_METADATA")
    assert "unfinished" not in written.read_text() and "past" not in written.read_text()


def test_the_newest_and_the_best_are_kept(learner, state, tmp_path):
    checkpoints = Checkpointer(tmp_path, keep=2)
    for step, accuracy in enumerate([0.1, 0.9, None, 0.3, 0.2, None]):
        checkpoints.save(at(state, step), accuracy)
    checkpoints.close()
    checkpoints = Checkpointer(tmp_path, keep=2)
    assert checkpoints.steps() == [1, 4, 5]
    assert [checkpoints.accuracy(step) for step in (1, 4, 5)] == [0.9, 0.2, None]
    described = checkpoints.describe(4)
    assert described["params/policy/embedding"].shape == (20, 16)
    assert described["step"].dtype == jnp.int32
    assert len(described) == len(jax.tree.leaves(state))
    with pytest.raises(FileNotFoundError, match=r"iteration 3 in .*; there are \[1, 4, 5\]"):
        checkpoints.restore(learner.abstract_state, 3)
    checkpoints.close()


def test_what_was_cut_off_is_passed_over_with_a_message(learner, state, tmp_path, caplog):
    checkpoints = Checkpointer(tmp_path)
    checkpoints.save(at(state, 1))
    checkpoints.close()
    broken = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    broken.mkdir()
    (broken / "array").write_bytes(b"half")
    checkpoints = Checkpointer(tmp_path)
    assert checkpoints.latest_step() == 1
    assert any("2.orbax-checkpoint-tmp is incomplete" in line for line in caplog.messages)
    assert_same(at(state, 1), checkpoints.restore(learner.abstract_state))
    checkpoints.save(at(state, 2))
    checkpoints.close()
    assert Checkpointer(tmp_path).latest_step() == 2


def test_a_full_disk_leaves_the_older_checkpoints_intact(learner, state, tmp_path):
    checkpoints = Checkpointer(tmp_path)
    checkpoints.save(at(state, 1))
    checkpoints.close()
    checkpoints = Checkpointer(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        # Every write to a file ends at this size, as it would on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
        with pytest.raises(OSError, match=r"could not be written to .*complete: \[1\]"):
            checkpoints.save(at(state, 2))
            checkpoints.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    checkpoints = Checkpointer(tmp_path)
    assert checkpoints.steps() == [1]
    assert_same(at(state, 1), checkpoints.restore(learner.abstract_state))
    checkpoints.close()


def test_a_place_that_is_no_directory_is_refused(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(OSError, match="checkpoints"):
        Checkpointer(tmp_path)
