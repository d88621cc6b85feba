"""Packed rows: first-fit decreasing by hand, and losses and gradients equal to those of padding."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tiny import ragged_rollout

from dfpo_jax.algorithms import PRESETS, compose
from dfpo_jax.models import LoraConfig, Transformer
from dfpo_jax.models.packing import (
    SLOTS,
    in_packs,
    in_pieces,
    pack,
    plan_packs,
    plan_rows,
    taken,
    whole_layout,
)
from dfpo_jax.sharding import create_mesh, mesh_context
from dfpo_jax.training.config import default_config, parse_config
from dfpo_jax.training.gradients import accumulate_gradients
from dfpo_jax.types import Expert


def first_fit(lengths, length):
    """[rows of sequences], the longest first, each in the first row with room and a slot."""
    rows = []
    for one in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        for row in rows:
            if sum(lengths[i] for i in row) + lengths[one] <= length and len(row) < SLOTS:
                row.append(one)
                break
        else:
            rows.append([one])
    return rows


@pytest.mark.parametrize("seed", range(4))
def test_rows_are_those_of_first_fit_decreasing(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 13, 40) if seed else np.zeros(40, int)  # 0: the slots run out
    table, used = jax.jit(plan_rows, static_argnums=1)(jnp.asarray(lengths, jnp.int32), 12)
    found = [[i for i in row if i >= 0] for row in np.asarray(table).tolist()]
    expected = first_fit(lengths.tolist(), 12)
    assert found[: int(used)] == expected and not any(found[int(used) :])
    packs, count = plan_packs(jnp.asarray(lengths, jnp.int32), 12, 3)
    assert packs.shape[1:] == (3, SLOTS) and int(count) == -(-len(expected) // 3)
    np.testing.assert_array_equal(packs.reshape(-1, SLOTS)[: len(table)], table)


def sequences(seed=1, batch=13, length=12):
    """Sequences with padding on both sides; the first is full and the second empty."""
    rng = np.random.default_rng(seed)
    valid = np.zeros((batch, length), np.float32)
    for row in range(batch):
        begin, end = sorted(rng.integers(0, length + 1, 2))
        valid[row, begin:end] = 1
    valid[0], valid[1] = 1, 0
    return rng.integers(1, tiny.VOCAB, (batch, length)).astype(np.int32), valid


def test_packed_rows_hold_every_token_once_and_give_it_back():
    tokens, valid = sequences()
    packs, count = plan_packs(jnp.sum(valid, axis=1, dtype=jnp.int32), 12, 2)
    seen = np.zeros(len(tokens), int)
    for number in range(int(count)):
        index = np.asarray(packs[number]).reshape(-1)
        packed = pack(*taken((jnp.asarray(tokens), jnp.asarray(valid)), packs[number]))
        back, places = packed.unpack(packed.tokens), packed.unpack(packed.segments.positions)
        for slot, row in enumerate(index):
            if row >= 0:
                seen[row] += 1
                real = valid[row] > 0
                np.testing.assert_array_equal(np.asarray(back[slot])[real], tokens[row][real])
                np.testing.assert_array_equal(np.asarray(places[slot])[real], range(real.sum()))
        used = int(sum(valid[row].sum() for row in index if row >= 0))
        assert int(jnp.sum(packed.segments.ids < SLOTS)) == used
        # The packed token after each of a sequence but its last one is its next.
        follows = np.asarray(packed.segments.ids)
        inner = (follows[:, :-1] == follows[:, 1:]) & (follows[:, 1:] < SLOTS)
        np.testing.assert_array_equal(
            np.asarray(packed.targets)[:, :-1][inner], np.asarray(packed.tokens)[:, 1:][inner]
        )
    assert (seen == 1).all()


def test_the_decoder_reads_sequences_in_packed_rows_as_it_does_alone():
    model, (tokens, valid) = Transformer(tiny.DECODER), sequences()
    params = model.init(jax.random.key(0), tokens, valid)["params"]
    alone, _ = model.apply({"params": params}, tokens, valid)

    def one(sequence, valid, packed):
        hidden, _ = model.apply({"params": params}, packed.tokens, None, segments=packed.segments)
        return packed.unpack(hidden)

    found = jax.jit(in_packs(2), static_argnums=0)(one, jnp.asarray(tokens), jnp.asarray(valid))
    real = valid > 0
    np.testing.assert_allclose(found[real], alone[real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2)])
def test_the_decoder_reads_sequences_in_pieces_as_it_does_at_once(mesh):
    model, (tokens, valid) = Transformer(tiny.DECODER), sequences()
    params = model.init(jax.random.key(0), tokens, valid)["params"]
    rows = slice(0, len(tokens) // 8 * 8)
    tokens, valid = jnp.asarray(tokens[rows]), jnp.asarray(valid[rows])

    def one(sequence, valid, packed):
        assert packed is None and len(sequence) == len(tokens) // 2
        hidden, _ = model.apply({"params": params}, sequence, valid)
        return hidden, valid

    with mesh_context(create_mesh(*mesh)):
        found, kept = jax.jit(in_pieces(2), static_argnums=0)(one, tokens, valid)
    np.testing.assert_array_equal(kept, valid)
    alone, _ = model.apply({"params": params}, tokens, valid)
    real = valid > 0
    np.testing.assert_allclose(found[real], alone[real], rtol=1e-5, atol=1e-5)


def built(name, **changes):
    """(tokens, model) -> the algorithm of a preset; 0 tokens for padded rows.

    That of packed rows also leaves the old log-probabilities to its only update.
    """
    assigned = default_config()
    assigned.algorithm = name
    if name == "gvm":
        assigned.critic.source = "value_model"
    for path, value in changes.items():
        section, _, key = path.rpartition(".")
        setattr(functools.reduce(getattr, section.split("."), assigned), key, value)
    config = parse_config(assigned).algorithm_config()
    critic = dataclasses.replace(config.critic, flow=small(config.critic.flow))
    config = dataclasses.replace(config, critic=critic)

    def build(tokens, model):
        layout = functools.partial(whole_layout, tokens=tokens)
        return compose(model, config, 0.8, layout=layout, updates_once=tokens > 0)

    return build


def small(flow):
    return dataclasses.replace(flow, head=tiny.HEAD, num_samples=2, num_quantiles=5)


def rollout_for(name):
    """Ragged, with what the plan and the objective of the preset read."""
    rollout = ragged_rollout()
    rng, shape = np.random.default_rng(3), rollout.tokens.shape
    if name == "calibrl":
        words = rng.integers(0, tiny.VOCAB, shape).astype(np.int32)
        rollout = rollout.replace(expert=Expert(words, np.ones(shape, np.float32)))
    if name == "reinforce_ada":
        rollout = rollout.replace(baseline=np.full(shape[0], 0.4, np.float32))
    return rollout


def losses_and_gradients(algorithm, state, rollout, tokens):
    """Advantages, gradients and losses, with pieces of `tokens` packed tokens; 0: padded."""
    batch, context = jax.jit(algorithm.prepare)(state, rollout, jax.random.key(5))
    options = {"networks": algorithm.networks, "microbatch_tokens": tokens}
    run = functools.partial(accumulate_gradients, algorithm, microbatches=1, **options)
    return batch.advantages, *jax.jit(run)(state.params, batch, context, jax.random.key(2))


def close(found, expected, tolerance=1e-5):
    """Equal, relative to the largest number of each array; sums of advantages may come to 0."""
    for x, y in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        size = max(float(np.abs(y).max()), 0.1)
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * size)


def check_equal(build, rollout, model):
    algorithm = build(0, model)._replace(separate_critic=False)
    policy = model.init(jax.random.key(0), rollout.tokens, rollout.mask)["params"]
    state = tiny.make_state(algorithm, tiny.randomised(policy, scale=0.1))
    expected = losses_and_gradients(algorithm, state, rollout, 0)
    assert any(np.abs(x).max() > 0 for x in jax.tree.leaves(expected[1]))
    tokens = 2 * (rollout.prompt_tokens.shape[1] + rollout.tokens.shape[1])  # two rows at once
    close(losses_and_gradients(build(tokens, model), state, rollout, tokens), expected)


FAST = ("dfpo", "grpo")


@pytest.mark.parametrize(
    "name",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in PRESETS],
)
def test_packed_losses_and_gradients_equal_padded_ones(name):
    """Also where the only update evaluates the old policy, and the critic comes after it."""
    check_equal(built(name), rollout_for(name), Transformer(tiny.DECODER))


def test_packing_changes_no_critic_with_a_trunk_of_its_own_nor_lora():
    """Nor pooled, whitened states and confidence, whose features are means over a sequence."""
    whole = {"critic.trunk": "own", "critic.pooled": True, "critic.whiten": 0.1}
    build = built("dfpo", **whole, **{"critic.confidence": True, "critic.units": "asinh"})
    lora = LoraConfig(rank=2, targets=("query", "value"))
    model = Transformer(dataclasses.replace(tiny.DECODER, lora=lora))
    check_equal(build, rollout_for("dfpo"), model)
