"""Hidden states that the sampler keeps are those of the whole sequence, and preparation's."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import tiny
from tiny_run import tiny as configuration

from dfpo_jax.models import Transformer
from dfpo_jax.plans.interface import Drawn, join
from dfpo_jax.rollout.collect import draw
from dfpo_jax.rollout.generate import generate
from dfpo_jax.rollout.sampling import SamplingConfig
from dfpo_jax.sharding import create_mesh, mesh_context, put_batch
from dfpo_jax.tasks.base import Item
from dfpo_jax.training.config import parse_config
from dfpo_jax.training.run import build_run

EOS = 1


@pytest.mark.parametrize(
    ("mesh", "rows", "packed"),
    [((1, 1, 1), 4, False), ((2, 2, 2), 8, False), ((2, 2, 2), 4, True)],
    ids=str,
)
def test_they_are_those_of_one_pass_over_prompt_and_response(mesh, rows, packed):
    """Also in slots that refill, of prompts read in pieces, and of a prompt without tokens."""
    model = Transformer(tiny.DECODER)
    rng = np.random.default_rng(3)
    tokens = rng.integers(2, tiny.VOCAB, (8, 5)).astype(np.int32)
    mask = (np.arange(5)[None] >= rng.integers(0, 5, (8, 1))).astype(np.float32)
    mask[2] = 0.0
    params = tiny.randomised(model.init(jax.random.key(0), tokens, mask)["params"])
    config = SamplingConfig(6, slots=8, prefill_rows=rows, pack_prompts=packed)
    options = {"config": config, "eos_ids": (EOS,), "pad_id": 0, "num_samples": 2}
    call = functools.partial(generate, model, **options)
    keeping, mesh = functools.partial(call, keep_states=True), create_mesh(*mesh)
    with mesh_context(mesh):
        inputs = (params, *put_batch((tokens, mask), mesh), jax.random.key(1))
        plain, found = (jax.device_get(jax.jit(x)(*inputs)) for x in (call, keeping))
    assert plain.states is None
    np.testing.assert_array_equal(found.tokens, plain.tokens)
    assert len(set(found.mask.sum(axis=1))) > 2
    prompts = [np.repeat(x, 2, axis=0) for x in (tokens, mask)]
    sequence = np.concatenate([prompts[0], found.tokens], axis=1)
    valid = np.concatenate([prompts[1], found.mask], axis=1)
    whole, _ = model.apply({"params": params}, sequence, valid)
    reads = valid.copy()  # the last token of a response is never read
    reads[:, 4:-1], reads[:, -1] = reads[:, 5:] * (valid[:, 4:-1] > 0), 0.0
    there = reads > 0
    np.testing.assert_allclose(found.states[there], np.asarray(whole)[there], atol=2e-5)
    assert not found.states[:, 5:][found.mask == 0].any() and not found.states[:, -1].any()


def test_preparation_reads_them():
    config = configuration(keep_states=True)
    config.critic.update(trunk="detached", pooled=True, confidence=True, whiten=0.01)
    run = build_run(parse_config(config))
    state = run.learner.start(run.key)
    items = run.train_task.batch(0, 4)
    inputs = (run.sampler, state.params["policy"], run.train_task, run.rewards, items, run.key, 0)
    rollout = draw(*inputs, num_samples=2).rollout
    assert rollout.states.shape == (8, 6 + 3, 16)
    rollouts = {
        "kept": rollout,
        "anew": rollout.replace(states=None),
        "other": rollout.replace(states=rollout.states + 1.0),
    }
    batches = {name: run.learner.prepare(state, x) for name, x in rollouts.items()}
    updated = {
        name: run.learner.update(run.learner.start(run.key), *x)[1] for name, x in batches.items()
    }
    assert updated["kept"] == pytest.approx(updated["anew"], rel=1e-4, abs=1e-5)
    assert updated["kept"] != pytest.approx(updated["other"], rel=1e-2)


def test_rounds_with_other_prompt_slots_are_joined():
    def drawn(prompt):
        rollout = jax.tree.map(lambda x: x[:2], tiny.ragged_rollout(prompt=prompt, response=5))
        rollout = rollout.replace(samples=1, states=np.ones((2, prompt + 5, 4), np.float32))
        return Drawn(rollout, ["a"] * 2, [Item("p", "a")] * 2)

    states = join([drawn(2), drawn(4)]).rollout.states
    assert states.shape == (4, 9, 4)
    assert not states[:2, :2].any() and (states[:2, 2:] == 1).all() and (states[2:] == 1).all()


@pytest.mark.parametrize(
    ("section", "settings"),
    [
        ("train", {"behaviour_lag": 1}),
        ("partial", {"tokens": 4, "spare": 2}),
        ("sampling", {"cache_dtype": "bfloat16"}),
        ("plan", {"name": "hybrid"}),
        ("returns", {"overlong": "bootstrap"}),
        ("train", {"keep_states": False}),
    ],
    ids=str,
)
def test_states_of_another_policy_or_precision_are_not_kept(section, settings):
    config = parse_config({"train": {"keep_states": True}})
    assert config.keeps_states
    sections = {section: dataclasses.replace(getattr(config, section), **settings)}
    assert not dataclasses.replace(config, **sections).keeps_states
