"""Damaged checkpoints: passed over for the newest intact one, set aside by a save, never lost."""

import json
import logging
import random
import shutil

import jax
import numpy as np
import pytest
from training import test_checkpoint

from dfpo_jax.training import checkpoint, checksums
from dfpo_jax.training.checkpoint import Checkpointer

from training.test_checkpoint import assert_same, at  # isort: skip

learner, state = test_checkpoint.learner, test_checkpoint.state


@pytest.fixture(scope="module")
def saved(learner, state, tmp_path_factory):
    """Checkpoints 1, 2 and 3 of two differing states."""
    workdir = tmp_path_factory.mktemp("saved")
    checkpoints = Checkpointer(workdir, keep=3)
    for step in (1, 2, 3):
        checkpoints.save(at(state, step), 0.1 * step)
    checkpoints.close()
    return workdir


@pytest.fixture
def workdir(saved, tmp_path):
    shutil.copytree(saved / "checkpoints", tmp_path / "checkpoints")
    return tmp_path


def files(directory):
    return sorted(path for path in directory.rglob("*") if path.is_file())


def content(directory):
    return {str(path.relative_to(directory)): path.read_bytes() for path in files(directory)}


def forget_checksums(directory):
    for path in directory.glob("checksums.*"):
        path.unlink()


def cut(step, rng):
    path = rng.choice([x for x in files(step) if x.stat().st_size > 1])
    path.write_bytes(path.read_bytes()[: rng.randrange(1, path.stat().st_size)])


def emptied(step, rng):
    rng.choice(files(step)).write_bytes(b"")


def overwritten(step, rng):
    path = rng.choice(files(step))
    path.write_bytes(rng.randbytes(rng.randrange(1, 5000)))


def flipped(step, rng):
    path = rng.choice([x for x in files(step) if not x.name.startswith("checksums.")])
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def removed(step, rng):
    rng.choice([x for x in files(step) if not x.name.startswith("checksums.")]).unlink()


def unmarked(step, rng):
    (step / checksums.MARK).unlink()


def half_copied(step, rng):
    (step / checksums.MARK).unlink()
    for path in files(step / "default"):
        if path.name != "_METADATA":
            path.unlink()


def empty(step, rng):
    shutil.rmtree(step)
    step.mkdir()


def no_directory(step, rng):
    shutil.rmtree(step)
    step.write_text("a file")


DAMAGES = [cut, emptied, overwritten, flipped, removed]
WHOLE = [unmarked, half_copied, empty, no_directory]


@pytest.mark.parametrize("damage", [*DAMAGES, *WHOLE], ids=lambda f: f.__name__)
def test_a_damaged_checkpoint_is_named_and_passed_over(
    damage, workdir, learner, state, caplog, request
):
    directory = workdir / "checkpoints"
    for seed in range(4 if damage in DAMAGES else 1):
        shutil.rmtree(directory / "3", ignore_errors=True)
        shutil.copytree(request.getfixturevalue("saved") / "checkpoints" / "3", directory / "3")
        damage(directory / "3", random.Random(seed))
        before = content(directory)
        caplog.clear()
        checkpoint._warned.clear()
        checkpoints = Checkpointer(workdir)
        assert checkpoints.latest_step() == 2 and checkpoints.steps() == [1, 2]
        (line,) = caplog.messages
        assert line.startswith(f"checkpoint {directory / '3'} is damaged and passed over: ")
        assert "\n" not in line
        with pytest.raises(OSError, match=r"checkpoint .*/3 is damaged: .*; others are \[1, 2\]"):
            checkpoints.restore(learner.abstract_state, 3)
        checkpoints.close()
        assert content(directory) == before
    assert_same(at(state, 2), Checkpointer(workdir).restore(learner.abstract_state))
    assert_same(at(state, 1), Checkpointer(workdir).restore(learner.abstract_state, 1))


@pytest.mark.parametrize("damage", WHOLE, ids=lambda f: f.__name__)
def test_without_checksums_what_is_not_whole_is_passed_over(damage, workdir):
    for step in (2, 3):
        forget_checksums(workdir / "checkpoints" / str(step))
    assert Checkpointer(workdir).latest_step() == 3
    damage(workdir / "checkpoints" / "3", None)
    assert Checkpointer(workdir).steps() == [1, 2]


def test_without_checksums_a_full_read_decides(workdir, saved):
    step = workdir / "checkpoints" / "3"
    arrays = max(
        (step / "default" / "ocdbt.process_0" / "d").iterdir(), key=lambda x: len(x.read_bytes())
    )
    (tree,) = (step / "default" / "d").iterdir()
    metadata = [step / name for name in ("_CHECKPOINT_METADATA", "default/_METADATA")]
    described = step / "default" / "array_metadatas" / "process_0"
    for path in (arrays, tree, step / "default" / "manifest.ocdbt", described, *metadata):
        for content in (b"", b"{junk}", path.read_bytes()[:60]):
            shutil.rmtree(step)
            shutil.copytree(saved / "checkpoints" / "3", step)
            forget_checksums(step)
            assert checksums.fault(step, 3) is None
            path.write_bytes(content)
            assert checksums.fault(step, 3), (path, content[:10])


def test_a_record_that_is_not_of_this_iteration_or_of_all_processes(workdir):
    directory = workdir / "checkpoints"
    shutil.copytree(directory / "2", directory / "4")
    assert Checkpointer(workdir).faults()[4] == "it contains iteration 2"
    path = directory / "3" / "checksums.0.json"
    part = json.loads(path.read_text())
    for index in range(2):  # as two processes record it
        checksums.record(directory / "3", 3, index, 2)
    parts = [json.loads((directory / "3" / f"checksums.{i}.json").read_text()) for i in range(2)]
    assert parts[0]["files"] | parts[1]["files"] == part["files"]
    assert len(parts[0]["files"]) < len(part["files"])
    assert checksums.fault(directory / "3", 3) is None
    # Each reads its half: what is flipped is found by one of them.
    flipped(directory / "3", random.Random(1))
    found = [checksums.fault(directory / "3", 3, index, 2) for index in range(2)]
    assert sum(x is None for x in found) == 1 and "differs from what" in str(found)
    (directory / "3" / "checksums.1.json").unlink()  # killed in between: the arrays decide
    assert checksums._outline(directory / "3", 3) is None


def test_a_save_sets_damaged_ones_aside_and_keeps_the_intact(workdir, learner, state, caplog):
    directory = workdir / "checkpoints"
    flipped(directory / "3", random.Random(0))
    damaged = content(directory / "3")
    (directory / "7").mkdir()
    (directory / "1" / "metrics" / "metrics").write_bytes(b'{"accuracy":?0.1}')  # same size
    (directory / "3.damaged").mkdir()  # of an earlier time
    checkpoints = Checkpointer(workdir, keep=2)
    assert checkpoints.newest() == 2
    checkpoints.save(at(state, 3), 0.0)
    checkpoints.save(at(state, 4), 0.0)
    checkpoints.close()
    assert content(directory / "3.damaged.1") == damaged
    assert (directory / "1.damaged").is_dir()
    assert (directory / "7.damaged").is_dir() and not (directory / "7").exists()
    assert "3 is set aside as 3.damaged.1: " in caplog.text
    # 2 is the best of the intact ones, 3 and 4 are the newest.
    checkpoints = Checkpointer(workdir)
    assert checkpoints.steps() == [2, 3, 4]
    assert_same(at(state, 3), checkpoints.restore(learner.abstract_state, 3))


def test_where_none_is_intact_it_says_what_is_wrong_with_each(workdir, learner):
    directory = workdir / "checkpoints"
    for step in (1, 2, 3):
        unmarked(directory / str(step), None)
    checkpoints = Checkpointer(workdir)
    assert checkpoints.latest_step() is None and checkpoints.steps() == []
    message = r"no intact checkpoint in .* \(1: commit_success.txt is missing.*; 2: .*; 3: "
    with pytest.raises(FileNotFoundError, match=message):
        checkpoints.restore(learner.abstract_state)


def test_a_save_older_than_what_is_there_is_refused(workdir, state):
    with pytest.raises(ValueError, match=r"iteration is 1; checkpoint 3 is in "):
        Checkpointer(workdir).save(at(state, 1))


def test_reading_makes_no_directory(tmp_path):
    assert Checkpointer(tmp_path).steps() == []
    assert not (tmp_path / "checkpoints").exists()


def test_what_is_deleted_while_it_is_read_is_looked_for_anew(workdir, monkeypatch, caplog):
    real, directory = checksums.fault, workdir / "checkpoints"

    def deleted(path, *rest):
        if path.name == "3":  # as its run does
            shutil.rmtree(path)
            (directory / "2").rename(directory / "elsewhere")
        return real(path, *rest)

    monkeypatch.setattr(checksums, "fault", deleted)
    assert Checkpointer(workdir).latest_step() == 1
    assert not caplog.messages


def test_all_processes_follow_one_verdict(workdir, monkeypatch, caplog):
    from dfpo_jax.training import distributed

    def gather(value):  # the second of two processes finds its share damaged
        return [value, "a file differs"] if value is None else [value, value]

    monkeypatch.setattr(distributed, "gather", gather)
    assert Checkpointer(workdir).latest_step() is None
    assert "passed over: a file differs" in caplog.text
    caplog.set_level(logging.WARNING)


def test_values_are_gathered_from_all_processes(monkeypatch):
    from dfpo_jax.training import distributed

    others = [b'"a longer one"', b"[1, 2]"]

    def everyones(own):
        if own.shape:
            rows = [np.frombuffer(x, np.uint8) for x in others]
            return np.stack([own, *(np.pad(x, (0, own.size - x.size)) for x in rows)])
        return np.array([own, *map(len, others)])

    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(distributed.multihost_utils, "process_allgather", everyones)
    assert distributed.gather(None) == [None, "a longer one", [1, 2]]
