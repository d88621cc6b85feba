"""Where the cells of a study run, and what they start from."""

import os
import types

import pytest
import tiny_study
from _study import grid, plan, run, workers
from _study.workers import Done, Machine


def test_a_core_has_a_worker_and_an_accelerator_one():
    assert Machine("cpu", 6).workers(0) == 6 and Machine("cpu", 6).workers(9) == 9
    for platform, places in (("gpu", 1), ("gpu", 8), ("tpu", 4)):
        assert Machine(platform, places).workers(0) == 1
    assert Machine("gpu", 8).workers(3) == 3
    with pytest.raises(ValueError, match="--workers is 2, and cells run on 1 GPU .* at most 1"):
        Machine("gpu", 1).workers(2)
    with pytest.raises(ValueError, match="--workers is 2, and cells run on 4 TPU .* at most 1"):
        Machine("tpu", 4).workers(2)


def test_one_of_several_workers_sees_one_gpu():
    assert Machine("cpu", 2).environment(1, 2) == Machine("gpu", 2).environment(0, 1) == {}
    seen = [Machine("gpu", 2).environment(n, 2)["JAX_CUDA_VISIBLE_DEVICES"] for n in range(2)]
    assert seen == ["0", "1"]


def test_the_machine_is_what_jax_finds(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert workers.machine() == Machine("cpu", workers._available())
    answer = types.SimpleNamespace(returncode=0, stdout="a warning\ngpu 2\n", stderr="")
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(workers.subprocess, "run", lambda *_, **__: answer)
    assert workers.machine() == Machine("gpu", 2)
    answer.stdout = "cpu 1\n"
    assert workers.machine().platform == "cpu"
    answer.returncode, answer.stderr = 1, "Traceback\nRuntimeError: no such platform\n"
    with pytest.raises(ValueError, match="finds no device to run cells on: RuntimeError: no such"):
        workers.machine()


def test_only_cells_on_the_cpu_get_one_thread_of_it(monkeypatch, tmp_path):
    for name in ("JAX_PLATFORMS", "XLA_FLAGS", "OMP_NUM_THREADS", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(workers.os, "environ", dict(os.environ))
    workers.set_up("gpu", tmp_path)
    assert workers.os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path)
    assert not workers.os.environ.keys() & {"JAX_PLATFORMS", "XLA_FLAGS", "OMP_NUM_THREADS"}
    workers.set_up("cpu", tmp_path)
    assert workers.os.environ["JAX_PLATFORMS"] == "cpu"
    assert "multi_thread_eigen=false" in workers.os.environ["XLA_FLAGS"]


class OnePlace:
    """A pool of one worker, whose jobs end at once."""

    def __init__(self):
        self.jobs, self._new = [], []

    free = property(lambda self: 1 - len(self._new))
    busy = property(lambda self: bool(self._new))

    def start(self, job):
        self.jobs.append(job)
        self._new.append(job)
        if job.function == "make_warm_start":
            job.arguments[1].mkdir(parents=True)

    def finished(self):
        while self._new:
            yield Done(self._new.pop(), {"in": [0.0, 0.5], "sampled": [0.0, 0.5], "seconds": 1.0})


@pytest.mark.parametrize("given", [False, True])
def test_cells_start_from_a_warm_start_or_from_the_weights_that_are_given(tmp_path, given):
    source = tiny_study.get_config("two_cells")
    source.seeds = (0, 1)
    if given:
        source.run.weights.source = "smollm2"  # nothing reads it before a cell runs
        source.run.warm_start.steps = 0
    study = grid.comparison(source)
    pool = OnePlace()
    rows = tmp_path / "rows.jsonl"
    assert run.run(pool, tmp_path, rows, plan.Plan(study, [], {})) == []
    made = [job.arguments[1] for job in pool.jobs if job.function == "make_warm_start"]
    cells = [job.arguments[:2] for job in pool.jobs if job.function == "run_cell"]
    assert len(cells) == 4
    if given:
        assert not made and {weights for _, weights in cells} == {None}
        assert {config.weights.source for config, _ in cells} == {"smollm2"}
    else:
        assert len(made) == 2 and {weights for _, weights in cells} == set(made)
