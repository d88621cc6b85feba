"""A critic that also reads the mean of its trunk's states so far."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from critic_cases import Case, critic_case
from tiny import WIDTH


@functools.cache
def case(trunk, confidence=False):
    config = critic_case("scalar", trunk).config
    critic = dataclasses.replace(config.critic, pooled=True, confidence=confidence)
    return Case(dataclasses.replace(config, critic=critic))


def plain_states(embedding, rollout):
    """[B, R + 1, 2 D]: states of a model that embeds tokens, and their means, slot by slot."""
    rows, length = rollout.tokens.shape
    prompt = rollout.prompt_tokens.shape[1]
    found = np.zeros((rows, length + 1, 2 * WIDTH), np.float32)
    for row in range(rows):
        written = np.flatnonzero(rollout.mask[row])
        end = written[-1] + 1 if len(written) else 0
        tokens = [*rollout.prompt_tokens[row], *rollout.tokens[row]]
        real = [*rollout.prompt_mask[row], *(i < end for i in range(length))]
        for i in range(length + 1):
            so_far = [embedding[t] for t, r in zip(tokens, real, strict=True) if r]
            so_far = so_far[: int(rollout.prompt_mask[row].sum()) + min(i, end)]
            found[row, i] = [*embedding[tokens[prompt + i - 1]], *np.mean(so_far, axis=0)]
    return found


@pytest.mark.parametrize("trunk", ["own", "detached"])
def test_predictions_read_the_state_and_the_mean_of_those_so_far(trunk):
    this = case(trunk)
    params = this.state.params
    embedding = params["critic"]["trunk"] if trunk == "own" else params["policy"]
    states = plain_states(np.asarray(embedding["embedding"]), this.rollout)
    law = this.critic.law(this.critic.read(params["critic"]["head"], states))
    units = this.state.controls
    law = law * units["value_scale"] + units["value_shift"]
    found = jax.jit(this.algorithm.predict)(this.state, this.rollout)
    reached = np.cumsum(this.rollout.mask[:, ::-1], axis=1)[:, ::-1] > 0
    found, wanted = np.asarray(found)[reached], law[:, :-1][reached]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("trunk", ["detached", "shared"])
def test_a_detached_trunk_stops_the_gradient_of_the_mean_too(trunk):
    this, alone = case(trunk), critic_case("scalar", trunk)
    zero = jax.tree.map(np.zeros_like, this.moved["critic"])
    # A critic whose head reads nothing passes nothing on; what is left is the policy's own.
    losses = [
        this.run({**this.moved, "critic": critic})[1]["params"]["policy"]
        for critic in (this.moved["critic"], zero)
    ]
    same = [np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, losses), strict=True)]
    assert all(same) == (trunk == "detached")
    assert jax.tree.structure(this.moved) == jax.tree.structure(alone.moved)


def test_confidence_is_added_to_state_and_mean():
    this = case("detached", confidence=True)
    assert this.state.params["critic"]["confidence"]["kernel"].shape[1] == 2 * WIDTH
    _, grads = this.run(this.moved)
    assert np.all(np.any(grads["params"]["critic"]["confidence"]["kernel"] != 0.0, axis=0))
