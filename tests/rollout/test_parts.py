"""Rounds that are sampled in parts, and evaluations that use the program of training."""

import dataclasses
import threading
from collections import Counter

import jax
import numpy as np
import pytest
import tiny
from tiny_run import tiny as configuration

from dfpo_jax import memory
from dfpo_jax.models import Transformer
from dfpo_jax.rewards import Rewards
from dfpo_jax.rollout import sampler as samplers
from dfpo_jax.rollout.collect import draw, respond
from dfpo_jax.rollout.sampler import Sampler
from dfpo_jax.rollout.sampling import SamplingConfig
from dfpo_jax.sharding import create_mesh
from dfpo_jax.tasks.base import Item, Task, Verdict, VerifierFailure
from dfpo_jax.tokenizers import character_tokenizer
from dfpo_jax.training.config import parse_config
from dfpo_jax.training.loop import evaluate_critic
from dfpo_jax.training.rollouts import Rollouts
from dfpo_jax.training.run import build_run

ITEMS = [Item("12345"[: 1 + i % 5], str(i), index=i) for i in range(7)]
KEY = jax.random.key(3)


class Even(Task):
    """Rewards responses of an even length; fails on the items in `failing`."""

    name, reward_range, failing = "even", (0.0, 1.0), ()

    def batch(self, step, size):
        return ITEMS[:size]

    def items(self, count):
        return ITEMS[:count]

    def score(self, item, response):
        return float(len(response) % 2 == 0)

    def judge(self, items, responses):
        failed = Verdict(0.0, "error", "TypeError: none")
        return [
            failed if item.index in self.failing else verdict
            for item, verdict in zip(items, super().judge(items, responses), strict=True)
        ]


def policy(mesh=(1, 1, 1), **settings):
    """A sampler, and random parameters of a model of two layers."""
    model, tokenizer = Transformer(tiny.DECODER), character_tokenizer("12345")
    config = SamplingConfig(max_new_tokens=6, **settings)
    sampler = Sampler(model, tokenizer, 5, config, create_mesh(*mesh), top=2, keep_states=True)
    params = model.init(jax.random.key(0), *sampler.prompts(ITEMS))["params"]
    return sampler, tiny.randomised(params, scale=0.2)


def same(found, expected):
    for name in ("tokens", "mask", "truncated", "top_tokens"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), name)
    for name in ("log_probs", "top_log_probs", "states"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=2e-5)


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 1)], ids=str)
def test_they_are_the_rows_of_the_whole(mesh):
    """Also where the last part is smaller, and on a mesh that divides no part."""
    whole, params = policy(mesh)
    split = dataclasses.replace(whole, config=dataclasses.replace(whole.config, parts=3))
    rewards = Rewards().build(Even.reward_range)
    inputs = (Even(), rewards, ITEMS, KEY, 0)
    expected, found = (draw(one, params, *inputs, num_samples=4) for one in (whole, split))
    assert len(set(expected.rollout.mask.sum(axis=1))) > 3
    same(found.rollout, expected.rollout)
    np.testing.assert_array_equal(found.rollout.groups, np.repeat(np.arange(7), 4))
    np.testing.assert_array_equal(found.rollout.prompt_tokens, expected.rollout.prompt_tokens)
    assert found.texts == expected.texts
    np.testing.assert_array_equal(found.rollout.rewards, [len(t) % 2 == 0 for t in found.texts])


def test_a_program_of_other_sizes_gives_the_same_responses_and_is_compiled_once(monkeypatch):
    sampler, params = policy()
    expected = respond(sampler, params, Even(), ITEMS, KEY, num_samples=4)
    shapes, call = set(), samplers._checked_sample

    def counted(params, tokens, *inputs, **options):
        shapes.add((tokens.shape, options["num_samples"], options["config"]))
        return call(params, tokens, *inputs, **options)

    monkeypatch.setattr(samplers, "_checked_sample", counted)
    found = respond(sampler, params, Even(), ITEMS, KEY, num_samples=4, shape=(5, 2))
    respond(sampler, params, Even(), ITEMS[:5], KEY, num_samples=2)
    respond(sampler, params, Even(), ITEMS[:2], KEY, num_samples=2, shape=(5, 2))
    assert len(shapes) == 1
    same(found.generation, expected.generation)
    assert found.texts == expected.texts and found.rewards.tolist() == expected.rewards.tolist()
    respond(sampler, params, Even(), ITEMS, KEY, num_samples=3, shape=(5, 2))
    assert len(shapes) == 2  # 2 does not divide 3: a program of its own


def test_a_part_is_verified_while_the_next_is_sampled(monkeypatch):
    """Sampling the second part waits until the verifier is at work on the first."""
    sampler, params = policy(parts=2)
    begun, call, waited = threading.Event(), samplers._checked_sample, []

    class Watched(Even):
        def judge(self, items, responses):
            begun.set()
            return super().judge(items, responses)

    def waiting(*inputs, **options):
        if inputs[-1] > 0:  # the number of the first prompt
            waited.append(begun.wait(60))
        return call(*inputs, **options)

    monkeypatch.setattr(samplers, "_checked_sample", waiting)
    respond(sampler, params, Watched(), ITEMS, KEY)
    assert waited == [True]


def test_failures_count_over_all_parts():
    sampler, params = policy(parts=7)
    task, tally = Even(), Counter()
    task.failing = (0, 6)
    respond(sampler, params, task, ITEMS, KEY, num_samples=2, tally=tally)
    assert tally["verifier/errors"] == 4
    task.most_failures = 0.25  # more than that in two parts, and in all
    with pytest.raises(VerifierFailure, match="failed on 4 of 14 responses"):
        respond(sampler, params, task, ITEMS, KEY, num_samples=2, tally=Counter())
    task.most_failures = 0.3
    respond(sampler, params, task, ITEMS, KEY, num_samples=2, tally=Counter())


def test_what_a_verifier_raises_beside_sampling_arrives():
    class Broken(Even):
        def score(self, item, response):
            raise OSError("the service does not answer")

    sampler, params = policy(parts=2)
    with pytest.raises(OSError, match="the service does not answer"):
        respond(sampler, params, Broken(), ITEMS, KEY)


def test_a_number_of_parts_below_one_is_refused():
    with pytest.raises(ValueError, match="parts is 0; it must be at least 1"):
        SamplingConfig(parts=0)


def test_the_critics_evaluation_needs_no_program_of_its_own():
    """Two calls of training's: 5 prompts with 4 responses each, by 4 prompts with 2."""
    memory.clear_caches()
    config = configuration(keep_states=True)
    config.critic.trunk = "detached"
    config.evaluation.update(critic_prompts=5, critic_samples=4)
    run = build_run(parse_config(config))
    state = run.learner.start(run.key)
    with Rollouts(run) as rollouts:
        rollouts.take(state)
    metrics, _ = evaluate_critic(run, state)
    assert np.isfinite(metrics["eval/critic/crps"])
    assert len(samplers._checked_sample._programs) == 1


def test_more_parts_than_prompts_are_refused():
    config = configuration()
    config.sampling.parts = 5
    with pytest.raises(
        ValueError, match="sampling.parts is 5; it must be at most train.prompts, 4"
    ):
        parse_config(config)
