"""Programs that compile beside a run's start are those that the run calls."""

import logging

import numpy as np
import pytest
from tiny_run import tiny

from dfpo_jax import memory
from dfpo_jax.training import ahead, loop
from dfpo_jax.training.config import parse_config
from dfpo_jax.training.rollouts import Rollouts
from dfpo_jax.training.run import build_run


def configuration(kind):
    config = tiny()
    if kind == "split":
        config.algorithm = "ppo"
        config.train.behaviour_lag = 1
        config.mesh.update(fsdp=2, tensor=2, rollout=4)
        config.evaluation.critic_prompts = 3  # no number of rows that the mesh divides
    if kind == "stop":
        config.algorithm = "grpo"
        config.task.stop = config.out_of_domain.stop = "0"
        config.sampling.parts = 2
    if kind == "states":
        config.train.keep_states = True
        config.critic.trunk = "detached"
        config.train.prompt_buckets = (4,)
    return config


@pytest.mark.parametrize(
    "kind", ["stop", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("states", "split"))]
)
def test_nothing_compiles_twice(kind, monkeypatch):
    run = build_run(parse_config(configuration(kind)))
    ahead.compile_beside(run).join()

    def again(lowered, *more):
        raise AssertionError(f"compiled again: {lowered.as_text()[:80]}")

    monkeypatch.setattr(memory, "compiled", again)
    state = run.learner.start(run.key)
    found = loop.evaluate(run, state)[0]
    with Rollouts(run) as rollouts:
        state, metrics, _ = loop.iteration(run, state, rollouts)
        rollouts.wait()
    found |= metrics | loop.evaluate_critic(run, state)[0]
    assert found["train/skipped_updates"] == 0.0
    assert ("eval/critic/crps" in found) == (kind != "stop")
    assert all(np.isfinite(x) for name, x in found.items() if name.startswith("eval"))


def test_what_goes_wrong_waits_for_the_call(monkeypatch, caplog):
    run = build_run(parse_config(configuration("states")))

    def broken(*arguments):
        raise RuntimeError("the compiler gave up")

    monkeypatch.setattr(memory, "compiled", broken)
    memory.clear_caches()
    with caplog.at_level(logging.DEBUG, logger=ahead.__name__):
        ahead.compile_beside(run).join()
    assert "not compiled ahead of time: the compiler gave up" in caplog.text
    with pytest.raises(RuntimeError, match="the compiler gave up"):
        loop.evaluate(run, run.learner.start(run.key))
