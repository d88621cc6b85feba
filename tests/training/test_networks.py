"""Networks that train, that rest and that an objective adds; what changes between iterations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import Markov, ragged_rollout

from dfpo_jax.algorithms import AlgorithmConfig, compose
from dfpo_jax.algorithms.interface import Observed
from dfpo_jax.algorithms.trunk import join_sequence
from dfpo_jax.critics import Critics
from dfpo_jax.objectives import Kl, Objectives
from dfpo_jax.sharding import create_mesh
from dfpo_jax.training.checkpoint import Checkpointer
from dfpo_jax.training.config import parse_config
from dfpo_jax.training.learner import Learner
from dfpo_jax.training.run import make_learner
from dfpo_jax.training.update import Schedule

RATE = 0.05


@functools.cache
def three_networks(mesh=(1, 1, 1)):
    objective = Objectives("toy_parts:Guess", {"weight": 0.5}, kl=Kl(0.2, target=0.01, horizon=5))
    model = Markov()
    algorithm = compose(model, AlgorithmConfig(Critics("scalar"), objective=objective), 0.8)
    optimizers = {name: optax.sgd(RATE, momentum=0.9) for name in algorithm.networks}
    return Learner(model, algorithm, optimizers, Schedule(), create_mesh(*mesh))


def host(tree):
    return jax.tree.map(np.array, tree)


def step(learner, state, number=0):
    """An iteration as the loop makes it, on rewards of no known range."""
    rollout = ragged_rollout(number)
    state = learner.observe(state, Observed(rollout.rewards, first=number == 0))
    state, metrics = learner.update(state, *learner.prepare(state, rollout))
    return learner.adapt(state, metrics), metrics


def assert_same(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(*map(jax.tree.leaves, (first, second)), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


def same(first, second):
    pairs = zip(*map(jax.tree.leaves, (first, second)), strict=True)
    return [bool(np.all(np.asarray(a) == np.asarray(b))) for a, b in pairs]


def test_a_network_of_an_objective_trains_beside_policy_and_critic():
    learner = three_networks()
    state = learner.start(jax.random.key(0))
    before = host(state.params)
    assert set(before) == set(state.opt_state) == {"policy", "critic", "objective"}
    state, metrics = step(learner, state)
    for name in before:
        assert not all(same(before[name], state.params[name])), name
        assert metrics[f"{name}/gradient_norm"] > 0
    assert not any(same(before["objective"], state.params["objective"]))
    # 0.5 mean (k.s + b - r)^2 over valid tokens, by hand; s is the embedding of the token before.
    rollout = ragged_rollout()
    sequence, _ = join_sequence(rollout)
    states = before["policy"]["embedding"][np.asarray(sequence)[:, 3:-1]].astype(np.float64)
    errors = states @ before["objective"]["kernel"] - rollout.rewards[:, None]
    weights = rollout.mask / rollout.mask.sum()
    np.testing.assert_allclose(metrics["policy/guess"], np.sum(weights * errors**2), rtol=1e-5)
    own = state.params["objective"]
    np.testing.assert_allclose(own["bias"], -RATE * np.sum(weights * errors), rtol=1e-4)
    slope = np.einsum("bt,btd->d", weights * errors, states)
    kernel = before["objective"]["kernel"] - RATE * slope
    np.testing.assert_allclose(own["kernel"], kernel, rtol=1e-4, atol=1e-6)


def test_networks_and_controls_survive_a_checkpoint_on_any_mesh(tmp_path):
    learner = three_networks()
    assert learner.controls == ("kl_coefficient",)
    state, checkpoints = learner.start(jax.random.key(0)), Checkpointer(tmp_path)
    first = host(state.controls)
    for number in range(2):
        state, _ = step(learner, state, number)
    checkpoints.save(state)
    saved = host(state.replace(key=None))
    for number in range(2, 4):
        state, _ = step(learner, state, number)
    checkpoints.close()
    described = Checkpointer(tmp_path).describe(2)
    names = [f"controls/{name}" for name in ("kl_coefficient", "value_scale", "value_shift")]
    assert sorted(name for name in described if name.startswith("controls/")) == names
    assert {"params/objective/kernel", "params/objective/bias"} <= set(described)
    for mesh in ((2, 2, 2), (1, 1, 1)):
        abstract = three_networks(mesh).abstract_state
        resumed = Checkpointer(tmp_path).restore(abstract)
        assert_same(resumed.replace(key=None), saved)
    assert not any(same(resumed.controls, first))  # all of them moved
    for number in range(2, 4):
        resumed, _ = step(learner, resumed, number)
    assert_same(resumed, state)
    assert not any(same(resumed.controls, saved.controls))


def frozen_learner(*names):
    """Of a small run whose policy is `Markov`."""
    config = {"algorithm": "ppo", "train": {"frozen": names, "prompts": 4, "samples": 2}}
    return make_learner(parse_config(config), Markov(), create_mesh())


def test_no_objective_gets_more_tokens_than_there_are():
    def of(top):
        settings = {"name": "divergence", "divergence": {"divergence": "topk_tv", "top": top}}
        return make_learner(parse_config({"objective": settings}), Markov(), create_mesh())

    size = Markov().config.vocab_size
    assert of(size).top == size
    with pytest.raises(
        ValueError, match=f"the {size + 1} most probable .*; model.vocab_size is {size}, so it may"
    ):
        of(size + 1)


@pytest.mark.parametrize(
    ("frozen", "trained"),
    [("critic", "policy"), pytest.param("policy", "critic", marks=pytest.mark.slow)],
)
def test_a_frozen_network_stays_bit_for_bit_and_has_no_optimizer_state(frozen, trained, tmp_path):
    learner = frozen_learner(frozen)
    state = learner.start(jax.random.key(0))
    assert set(state.opt_state) == {trained} and set(state.params) == {"policy", "critic"}
    before = host(state.params)
    state, metrics = step(learner, state)
    assert all(same(before[frozen], state.params[frozen]))
    assert not any(same(before[trained], state.params[trained]))
    assert f"{trained}/gradient_norm" in metrics and f"{frozen}/gradient_norm" not in metrics
    assert "critic/loss" in metrics  # measured all the same
    checkpoints = Checkpointer(tmp_path)
    checkpoints.save(state)
    checkpoints.close()
    names = {name.split("/")[1] for name in checkpoints.describe(1) if name.startswith("opt_state")}
    assert names == {trained}
    assert_same(Checkpointer(tmp_path).restore(learner.abstract_state), state)


@pytest.mark.parametrize("names", [("criti",), ("critic", "reference"), ("policy", "critic")])
def test_a_frozen_network_that_there_is_not_is_refused(names):
    with pytest.raises(ValueError) as error:
        frozen_learner(*names)
    assert str(error.value) == (
        f"config.train.frozen is {names}; it may name some of the networks, policy, critic, and "
        "must leave one that trains"
    )
