"""Training with LoRA: what trains, what is stored, gradients, meshes, and an exact resume."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from tiny import ragged_rollout
from training.test_loop import run_in, without_times
from training.test_loop import tiny as tiny_run

from dfpo_jax.algorithms import AlgorithmConfig, compose, sft
from dfpo_jax.critics import Critics, Flow
from dfpo_jax.models import LoraConfig, Transformer, lora
from dfpo_jax.objectives import Kl, Objectives
from dfpo_jax.sharding import create_mesh, mesh_context
from dfpo_jax.training.checkpoint import Checkpointer
from dfpo_jax.training.gradients import accumulate_gradients
from dfpo_jax.training.learner import Learner
from dfpo_jax.training.metrics import read_metrics
from dfpo_jax.training.update import Schedule

LORA = LoraConfig(rank=2, alpha=3.0, targets=("query", "output", "up", "down"))
MODEL = Transformer(dataclasses.replace(tiny.UNTIED, lora=LORA))
PLAIN = Transformer(tiny.UNTIED)
SCHEDULE = Schedule(epochs=2, minibatches=2, microbatches=2)
FLOW = Flow(tiny.HEAD, num_samples=2, num_steps=1, solver="euler", num_quantiles=5)
NETWORKS = ("policy", "critic")
NAMES = pytest.mark.parametrize("name", ["ppo", "dfpo"])


def make_algorithm(name, model, trunk="own"):
    if name == "sft":
        return sft(model)
    critic = Critics("scalar" if name == "ppo" else "flow", trunk=trunk, flow=FLOW)
    return compose(model, AlgorithmConfig(critic, objective=Objectives(kl=Kl(0.2))), 0.8)


@functools.cache
def make_learner(name, mesh=(1, 1, 1)):
    networks = ("policy",) if name == "sft" else NETWORKS
    return Learner(
        MODEL,
        make_algorithm(name, MODEL),
        {network: optax.adam(0.01) for network in networks},
        SCHEDULE,
        create_mesh(*mesh),
    )


def host(tree):
    return jax.tree.map(np.array, tree)


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


@functools.cache
def moved_start(name):
    """A start whose low-rank updates are not 0 and differ between policy, reference and critic."""
    start = host(make_learner(name).start(jax.random.key(0)).replace(key=None))
    trained, frozen = lora.split(start.params["policy"])
    policy = lora.join(tiny.randomised(trained, seed=1), frozen)
    critic = tiny.randomised(start.params["critic"], seed=2)
    return start.replace(params={"policy": policy, "critic": critic})


def put(name, state, mesh=(1, 1, 1)):
    learner = make_learner(name, mesh)
    return jax.device_put(state.replace(key=jax.random.key(1)), learner.state_shardings)


@NAMES
def test_base_weights_are_stored_once_and_have_no_moments(name):
    state = make_learner(name).abstract_state
    trained, frozen = lora.split(state.params["policy"])
    small, base = count(trained), count(frozen)
    # Each A and B: [layers, inputs, rank] and [layers, rank, outputs].
    width, heads, mlp = tiny.WIDTH, 2 * 8, 32
    assert small == 2 * 2 * (2 * (width + heads) + 2 * (width + mlp))
    critic, head = state.params["critic"], count(state.params["critic"]["head"])
    assert jax.tree.structure(critic["trunk"]) == jax.tree.structure(trained)
    assert jax.tree.structure(state.reference) == jax.tree.structure(trained)
    assert count(state.params) == base + 2 * small + head
    moments = {network: count(x) - 1 for network, x in state.opt_state.items()}  # less its counter
    assert moments == {"policy": 2 * small, "critic": 2 * (small + head)}
    assert count(state.reference) == small


@pytest.mark.slow
@NAMES
def test_training_moves_the_updates_and_leaves_the_base_bit_for_bit(name):
    learner = make_learner(name)
    state = learner.start(jax.random.key(0))
    before = host(state.params)
    trained, frozen = lora.split(before["policy"])
    jax.tree.map(np.testing.assert_array_equal, state.reference, trained)
    old = state
    batch, context = learner.prepare(state, ragged_rollout())
    np.testing.assert_array_equal(batch.old_log_probs, batch.ref_log_probs)
    state, metrics = learner.update(state, batch, context)
    assert all(x.is_deleted() for x in jax.tree.leaves(old.params))  # donated
    assert metrics["policy/gradient_norm"] > 0 and metrics["train/skipped_updates"] == 0
    after, kept = lora.split(host(state.params["policy"]))
    jax.tree.map(np.testing.assert_array_equal, kept, frozen)
    for new, was in ((after, trained), (state.params["critic"], before["critic"])):
        assert all(jax.tree.leaves(jax.tree.map(lambda a, b: np.any(a != b), new, was)))
    jax.tree.map(np.testing.assert_array_equal, state.reference, trained)
    batch, _ = learner.prepare(state, ragged_rollout())
    assert np.abs(batch.old_log_probs - batch.ref_log_probs).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "trunk"), [("ppo", "own"), ("ppo", "shared"), ("dfpo", "own"), ("dfpo", "detached")]
)
def test_gradients_are_those_of_the_folded_model_by_the_chain_rule(name, trunk):
    algorithm, plain = (make_algorithm(name, model, trunk) for model in (MODEL, PLAIN))
    state = moved_start(name)
    if trunk != "own":
        critic = {"head": state.params["critic"]["head"]}
        state = state.replace(params={**state.params, "critic": critic})
    params, key = state.params, jax.random.key(4)
    batch, context = jax.jit(algorithm.prepare)(state, ragged_rollout(), key)
    found, means = jax.jit(
        lambda *inputs: accumulate_gradients(algorithm, *inputs, key, 1, NETWORKS)
    )(params, batch, context)
    trained, frozen = lora.split(params["policy"])

    def loss(trained, critic):
        policy = lora.fold(lora.join(trained, frozen), LORA)
        if trunk == "own":
            own = lora.fold(lora.join(critic["trunk"], jax.lax.stop_gradient(frozen)), LORA)
            critic = {**critic, "trunk": {k: v for k, v in own.items() if k != "head"}}
        terms = plain.loss({"policy": policy, "critic": critic}, batch, context, key)
        return tiny.objective(terms), terms

    grads = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
    (policy, critic), terms = grads(trained, params["critic"])
    assert jax.tree.structure(found) == jax.tree.structure({"policy": policy, "critic": critic})
    for network, expected in (("policy", policy), ("critic", critic)):
        for a, b in zip(*map(jax.tree.leaves, (found[network], expected)), strict=True):
            assert np.linalg.norm(b) > 0
            assert np.linalg.norm(a - b) <= 1e-4 * np.linalg.norm(b)
    for term, value in means.items():
        total = terms[term].total / jnp.maximum(terms[term].count, 1.0)
        np.testing.assert_allclose(value, total, rtol=1e-4, atol=1e-6, err_msg=term)


@NAMES
def test_an_own_trunk_sends_no_gradient_to_the_policys_base_weights(name):
    algorithm, state = make_algorithm(name, MODEL), moved_start(name)
    batch, context = jax.jit(algorithm.prepare)(state, ragged_rollout(), jax.random.key(4))

    def critic_alone(policy):
        params = {**state.params, "policy": policy}
        terms = algorithm.loss(params, batch, context, jax.random.key(5))
        return sum(t.weight * t.total for name, t in terms.items() if name.startswith("critic"))

    grads = jax.jit(jax.grad(critic_alone))(state.params["policy"])
    assert not any(np.any(x) for x in jax.tree.leaves(grads))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mesh"), [("dfpo", (2, 2, 2)), ("ppo", (1, 8, 1))])
def test_a_mesh_gives_what_one_device_gives(name, mesh):
    results = []
    for sizes in ((1, 1, 1), mesh):
        learner = make_learner(name, sizes)
        state = put(name, moved_start(name), sizes)
        batch, context = learner.prepare(state, ragged_rollout())
        options = {"microbatches": 1, "networks": NETWORKS}
        gradients = functools.partial(accumulate_gradients, make_algorithm(name, MODEL), **options)
        with mesh_context(learner.mesh):
            out = jax.jit(gradients)(state.params, batch, context, jax.random.key(2))
        results.append(jax.device_get((batch.ref_log_probs, *out)))
        state, _ = learner.update(state, *learner.prepare(state, ragged_rollout()))
        for x, s in zip(*map(jax.tree.leaves, (state, learner.state_shardings)), strict=True):
            assert x.sharding.is_equivalent_to(s, x.ndim)
    for one, several in zip(*map(jax.tree.leaves, results), strict=True):
        norm = np.linalg.norm(one)
        assert np.linalg.norm(several - one) <= 2e-5 * norm + 1e-6


@pytest.mark.slow
def test_a_warm_start_trains_the_updates_alone():
    learner = make_learner("sft")
    state = learner.start(jax.random.key(0))
    assert count(state.opt_state) - 1 == 2 * count(lora.split(state.params["policy"])[0])
    trained, frozen = lora.split(host(state.params["policy"]))
    losses = []
    for _ in range(4):
        state, metrics = learner.update(state, *learner.prepare(state, ragged_rollout()))
        losses.append(metrics["policy/cross_entropy"])
    after, kept = lora.split(state.params["policy"])
    jax.tree.map(np.testing.assert_array_equal, kept, frozen)
    assert losses == sorted(losses, reverse=True) and losses[0] > losses[-1]
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: np.any(a != b), after, trained)))


def test_a_checkpoint_goes_to_another_mesh_and_on(tmp_path):
    learner = make_learner("dfpo")
    state = put("dfpo", moved_start("dfpo"))
    checkpoints = Checkpointer(tmp_path)
    checkpoints.save(state)
    checkpoints.close()
    checkpoints = Checkpointer(tmp_path)
    again, moved = (
        checkpoints.restore(make_learner("dfpo", mesh).abstract_state)
        for mesh in ((1, 1, 1), (2, 2, 2))
    )
    paths = checkpoints.describe(0)
    checkpoints.close()
    kernel = "layers/attention/query/kernel"
    assert [path for path in paths if path.endswith(kernel)] == [f"params/policy/{kernel}"]
    jax.tree.map(np.testing.assert_array_equal, host(moved.params), host(state.params))
    first, second = (
        learner.update(s, *learner.prepare(s, ragged_rollout())) for s in (state, again)
    )
    assert first[1] == second[1]
    jax.tree.map(np.testing.assert_array_equal, first[0].params, second[0].params)


@pytest.mark.slow
def test_a_run_resumes_bit_for_bit_and_keeps_its_rank(tmp_path):
    def config(**settings):
        made = tiny_run(**settings)
        made.model.lora.rank = 2
        made.objective.kl.coefficient = 0.1
        made.warm_start.steps = 0
        return made

    run_in(tmp_path / "whole", config(iterations=2))
    run_in(tmp_path / "parts", config(iterations=1))
    run_in(tmp_path / "parts", config(iterations=2), resume=True)
    whole, parts = (without_times(read_metrics(tmp_path / x)) for x in ("whole", "parts"))
    assert [row["step"] for row in parts] == [0, 1, 2] and whole[2] == parts[2]
    other = config(iterations=2)
    other.model.lora.rank = 3
    with pytest.raises(ValueError, match=r"cannot change config.model.lora.rank: 2 -> 3"):
        run_in(tmp_path / "parts", other, resume=True)
