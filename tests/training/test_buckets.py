"""Runs whose iterations have prompts of several padded lengths."""

import json
import logging

import jax
import numpy as np
import pytest
import tiny
from training import test_loop

from dfpo_jax import memory
from dfpo_jax.algorithms import AlgorithmConfig, Returns, compose
from dfpo_jax.critics import Critics
from dfpo_jax.models import Transformer
from dfpo_jax.objectives import Kl, Objectives
from dfpo_jax.training import loop
from dfpo_jax.training.config import parse_config
from dfpo_jax.training.metrics import read_metrics
from dfpo_jax.training.run import build_run

BUCKETS, LONGEST = (6, 7), 8


def ragged(buckets=BUCKETS):
    """Sums of one or two digits: two prompts per iteration, of 6 to 8 characters each."""
    config = test_loop.tiny(iterations=8, prompts=2, prompt_length=LONGEST)
    config.train.prompt_buckets = buckets
    config.task.parameters.max_digits = 2
    config.task.seed = 37  # the first prompts are short ones
    config.sampling.max_new_tokens = 4
    config.evaluation.update(every=0, critic_prompts=2)
    return config


def slots(workdir):
    return [int(row["rollout/prompt_slots"]) for row in read_metrics(workdir)[1:]]


class Records(logging.Handler):
    """Keeps records."""

    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run's directory, results, and what it compiled."""
    workdir, handler = tmp_path_factory.mktemp("finished"), Records()
    logger = logging.getLogger("jax")
    logger.addHandler(handler)
    memory.clear_caches()
    with test_loop.compilations_logged():
        results = test_loop.run_in(workdir, ragged())
    logger.removeHandler(handler)
    return workdir, results, handler.records


@pytest.mark.slow
def test_every_program_compiles_once_per_bucket(finished):
    workdir, _, records = finished
    found = slots(workdir)
    used = set(found)
    assert len(used) > 1 and used <= {*BUCKETS, LONGEST}
    changes = sum(a != b for a, b in zip(found, found[1:], strict=False))
    assert changes >= len(used)  # a length comes back after another one
    compiled = test_loop.compiled_once(records)
    updates = [line for line in compiled if "jit(update)" in line]
    assert len(updates) == len(used) + 1  # and the warm start's
    for width in used:
        assert sum(f"int32[4,{width + 4}]" in line for line in updates) >= 1
        generating = [line for line in compiled if "jit(_sample)" in line]
        assert sum(f"int32[2,{width}]" in line for line in generating) >= 1


@pytest.mark.slow
def test_the_first_iteration_pads_to_the_longest_so_that_what_does_not_fit_fails_at_once(finished):
    run, found = build_run(parse_config(ragged())), slots(finished[0])
    needed = [
        run.sampler.prompts(run.train_task.batch(step, 2))[0].shape[1] for step in range(len(found))
    ]
    assert needed[0] < LONGEST
    assert found == [LONGEST, *needed[1:]]


@pytest.mark.slow
def test_a_stopped_run_resumes_exactly(finished, tmp_path, monkeypatch):
    real = loop.iteration

    def dies(run, state, rollouts):
        if int(state.step) == 3:
            raise KeyboardInterrupt
        return real(run, state, rollouts)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "iteration", dies)
        with pytest.raises(KeyboardInterrupt):
            test_loop.run_in(tmp_path, ragged())
    results = test_loop.run_in(tmp_path, ragged(), resume=True)
    rows = [test_loop.without_times(read_metrics(path)) for path in (tmp_path, finished[0])]
    assert rows[0] == rows[1]
    for name in ("in_domain", "out_of_domain"):
        assert results[name] == finished[1][name]
    assert json.loads((tmp_path / "config.json").read_text())["train"]["prompt_buckets"] == [6, 7]


@pytest.mark.slow
def test_one_length_trains_the_same(finished, tmp_path):
    test_loop.run_in(tmp_path, ragged(()))
    assert set(slots(tmp_path)) == {LONGEST}
    rows = [test_loop.without_times(read_metrics(path)) for path in (tmp_path, finished[0])]
    for one, several in zip(*rows, strict=True):
        assert one.keys() == several.keys()
        for key in one.keys() - {"rollout/prompt_slots"}:
            assert several[key] == pytest.approx(one[key], rel=2e-4, abs=1e-5), (one["step"], key)


def test_warm_starts_and_evaluation_sets_have_one_length():
    run = build_run(parse_config(ragged()))
    assert run.sampler.prompt_buckets == BUCKETS and run.sampler.prompt_length == LONGEST
    sets = run.evaluations.values()
    longest = max(len(run.sampler.encode(item)) for x in sets for item in x.items)
    for held_out in sets:
        tokens, mask = held_out.sampler.prompts(held_out.items[:1])
        assert tokens.shape == (1, longest) and mask.sum() <= longest


def test_sets_that_cut_prompts_cut_them_at_the_length_of_training():
    config = ragged()
    config.task.overlong = "truncate"
    config.out_of_domain.parameters.max_digits = 4
    sets = build_run(parse_config(config)).evaluations
    lengths = {name: x.sampler.prompts(x.items)[0].shape[1] for name, x in sets.items()}
    assert lengths["in_domain"] == LONGEST < lengths["out_of_domain"]


@pytest.mark.slow
@pytest.mark.parametrize("critic", ["flow", "scalar"])
def test_losses_and_gradients_do_not_see_the_padding(critic):
    model = Transformer(tiny.DECODER)
    config = AlgorithmConfig(
        Critics(critic, flow=tiny.FLOW),
        objective=Objectives(kl=Kl(0.1)),
        returns=Returns(overlong="bootstrap"),
    )
    algorithm = compose(model, config, 0.7)
    short = tiny.ragged_rollout(prompt=4)

    def padded(x, value):
        return np.pad(x, ((0, 0), (3, 0)), constant_values=value).astype(x.dtype)

    whole = short.replace(
        prompt_tokens=padded(short.prompt_tokens, 9), prompt_mask=padded(short.prompt_mask, 0)
    )
    tokens = np.zeros((1, 1), np.int32)
    init = jax.jit(lambda key: model.init(key, tokens, tokens)["params"])
    params = tiny.randomised(init(jax.random.key(0)), scale=0.1)
    state = tiny.make_state(algorithm, params)
    evaluate, prepare = tiny.evaluator(algorithm), jax.jit(algorithm.prepare)
    found = []
    for rollout in (short, whole):
        batch, context = prepare(state, rollout, jax.random.key(1))
        assert batch.sequence.shape[1] == rollout.prompt_tokens.shape[1] + 5
        terms, grads = evaluate(state.params, batch, context, jax.random.key(2))
        found.append((terms, grads["params"]))
    largest = max(np.abs(x).max() for x in jax.tree.leaves(found[0][1]))
    assert largest > 0.01
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), *found)
    assert loop.rollout_metrics(whole, 1.0)["rollout/prompt_slots"] == 7.0
