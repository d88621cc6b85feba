"""The learner: minibatches, exact accumulation, meshes, finite checks, determinism."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from jax.sharding import NamedSharding, PartitionSpec
from tiny import Markov, ragged_rollout

from dfpo_jax.algorithms import AlgorithmConfig, LogProbs, Returns, compose, sft
from dfpo_jax.critics import Critics, Flow
from dfpo_jax.models import Transformer
from dfpo_jax.models.packing import whole_layout
from dfpo_jax.objectives import Entropy, Kl, Objectives
from dfpo_jax.sharding import create_mesh, mesh_context
from dfpo_jax.training.config import OptimizerConfig
from dfpo_jax.training.gradients import accumulate_gradients
from dfpo_jax.training.learner import Learner
from dfpo_jax.training.optim import make_optimizer
from dfpo_jax.training.update import Schedule

FLOW = Flow(
    head=tiny.HEAD,
    num_samples=4,
    num_steps=1,
    solver="euler",
    num_quantiles=5,
    inference="ode",
    dcfm_weight=0.5,
    geometry_weight=0.0,
    uncertainty="discount",
)
ONCE = Schedule()
NETWORKS = ("policy", "critic")
CRITICS = {"ppo": "scalar", "dfpo": "flow", "all inputs": "scalar", "packed": "flow"}
INPUTS = {"confidence": True, "pooled": True, "whiten": 0.5}


def make_algorithm(name, model, warmup=0, aggregation="token_mean"):
    config = AlgorithmConfig(
        Critics(CRITICS[name], warmup=warmup, flow=FLOW),
        objective=Objectives(aggregation=aggregation, kl=Kl(0.2), entropy=Entropy(0.01)),
        returns=Returns(overlong="bootstrap"),
        # The sampler's log-probabilities are far from the policy's here: ratios differ from 1.
        log_probs=LogProbs(recompute=False),
    )
    return compose(model, config, 0.8)


def make_optimizers(name):
    optimizer = optax.sgd(0.05)
    if name == "adamw":
        optimizer = make_optimizer(OptimizerConfig(learning_rate=0.01), 10)
    return {"policy": optimizer, "critic": optimizer}


@functools.cache
def make_learner(name, optimizers="sgd", schedule=ONCE, mesh=(1, 1, 1), warmup=0):
    model = Markov()
    return Learner(
        model,
        make_algorithm(name, model, warmup=warmup),
        make_optimizers(optimizers),
        schedule,
        create_mesh(*mesh),
    )


def close(first, second, tolerance=1e-5):
    """Every array equal up to a share of its own largest entry."""

    def one(a, b):
        a, b = np.asarray(a), np.asarray(b)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max() + 1e-7)

    jax.tree.map(one, first, second)


def moved(before, after):
    """Which arrays differ."""
    pairs = zip(*map(jax.tree.leaves, (before, after)), strict=True)
    return [bool(np.any(np.asarray(a) != np.asarray(b))) for a, b in pairs]


def host_copy(state):
    """A copy that survives donation, without the key."""
    return jax.tree.map(np.array, state.replace(key=None))


# --- accumulation -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "aggregation"),
    [("ppo", "token_mean"), ("ppo", "sequence_mean"), ("dfpo", "token_mean")],
)
def test_micro_batches_change_nothing(name, aggregation):
    algorithm = make_algorithm(name, Markov(), aggregation=aggregation)
    state, key = tiny.make_state(algorithm), jax.random.key(5)
    batch, context = jax.jit(algorithm.prepare)(state, ragged_rollout(), key)
    params = tiny.randomised(state.params, seed=8, scale=0.1)
    # The pieces hold different numbers of tokens, and one of four at most one sequence.
    lengths = np.asarray(batch.mask).sum(axis=1)
    assert lengths.reshape(4, 2).sum(axis=1).tolist() != [lengths.sum() / 4] * 4

    def run(pieces):
        return jax.jit(
            lambda *inputs: accumulate_gradients(algorithm, *inputs, key, pieces, NETWORKS)
        )(params, batch, context)

    whole = run(1)
    for pieces in (2, 4):
        close(run(pieces), whole)
    if name == "ppo":  # and one piece is the objective's own gradient
        terms, grads = tiny.evaluator(algorithm)(params, batch, context, key)
        means = {name: t.total / jnp.maximum(t.count, 1) for name, t in terms.items()}
        close(whole, (grads["params"], means))


# --- meshes -------------------------------------------------------------------------------------

PACKED_TOKENS = 18  # two rows at once on one device
MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4)]


def decoder_learner(name, mesh):
    """A learner of the decoder whose critic shares its trunk, and the algorithm."""
    inputs = INPUTS if name == "all inputs" else {}
    critic = Critics(CRITICS[name], trunk="shared", flow=FLOW, **inputs)
    model = Transformer(tiny.DECODER)
    tokens = PACKED_TOKENS if name == "packed" else 0
    layout = functools.partial(whole_layout, tokens=tokens)
    algorithm = compose(model, AlgorithmConfig(critic), 0.8, layout=layout)
    schedule = Schedule(microbatch_tokens=tokens)
    learner = Learner(model, algorithm, make_optimizers("sgd"), schedule, create_mesh(*mesh))
    return learner, algorithm


def run_on(name, mesh, start):
    """From a host state: advantages, gradients, losses, and the metrics of an iteration."""
    learner, algorithm = decoder_learner(name, mesh)
    state = jax.device_put(start.replace(key=jax.random.key(1)), learner.state_shardings)
    batch, context = learner.prepare(state, ragged_rollout())
    assert len(batch.sequence.sharding.device_set) == learner.mesh.size
    tokens = PACKED_TOKENS if name == "packed" else 0
    options = {"microbatches": 1, "networks": NETWORKS, "microbatch_tokens": tokens}
    gradients = functools.partial(accumulate_gradients, algorithm, **options)
    with mesh_context(learner.mesh):
        grads, losses = jax.jit(gradients)(state.params, batch, context, jax.random.key(2))
    state, metrics = learner.update(state, batch, context)
    assert {len(x.sharding.device_set) for x in jax.tree.leaves(state)} == {learner.mesh.size}
    return jax.device_get((batch.advantages, grads, losses, metrics))


@functools.cache
def on_one_device(name):
    """A start with random parameters, and what one device makes of it."""
    start = host_copy(decoder_learner(name, (1, 1, 1))[0].start(jax.random.key(0)))
    params = tiny.randomised(start.params)
    if "whitening" in params["critic"]:  # random numbers are no covariance
        params["critic"]["whitening"] = start.params["critic"]["whitening"]
    start = start.replace(params=params)
    return start, run_on(name, (1, 1, 1), start)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("name", ["ppo", "dfpo", "all inputs", "packed"])
def test_every_mesh_gives_the_losses_and_gradients_of_one_device(name, mesh):
    """Those of packed rows are compared with those of padded ones."""
    start, (advantages, grads, losses, metrics) = on_one_device(name.replace("packed", "dfpo"))
    several = run_on(name, mesh, start)
    close(several[0], advantages)
    for expected, found in ((losses, several[2]), (metrics, several[3])):
        for key, value in expected.items():
            np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-6, err_msg=key)
    for expected, found in zip(*map(jax.tree.leaves, (grads, several[1])), strict=True):
        norm = np.linalg.norm(expected)
        assert norm > 0 and np.linalg.norm(found - expected) <= 1e-5 * norm


def test_every_array_of_a_state_has_a_sharding():
    model = Transformer(tiny.UNTIED)
    algorithm = make_algorithm("dfpo", model)
    optimizers, mesh = make_optimizers("adamw"), create_mesh(2, 2, 2)
    learner = Learner(model, algorithm, optimizers, ONCE, mesh)
    abstract, shardings = learner.abstract_state, learner.state_shardings
    chex.assert_trees_all_equal_structs(
        jax.tree.map(lambda x: 0, abstract), jax.tree.map(lambda x: 0, shardings)
    )
    assert all(isinstance(x.sharding, NamedSharding) for x in jax.tree.leaves(abstract))
    policy, critic = shardings.params["policy"], shardings.params["critic"]
    assert policy["embedding"].spec == PartitionSpec("tensor", "fsdp")
    assert policy["layers"]["mlp"]["up"]["kernel"].spec == PartitionSpec(None, "fsdp", "tensor")
    assert critic["trunk"] == {k: v for k, v in policy.items() if k != "head"}
    assert critic["head"]["trunk"]["kernel"].spec == PartitionSpec("fsdp", None)
    assert shardings.reference == policy
    # Moments lie where their parameters do; the rest of an optimizer's state is on all devices.
    for name, moments in shardings.opt_state.items():
        found = [x.spec for x in jax.tree.leaves(moments)]
        specs = [x.spec for x in jax.tree.leaves(shardings.params[name])]
        for spec in set(specs) - {PartitionSpec(), PartitionSpec(None)}:
            assert found.count(spec) == 2 * specs.count(spec)


def test_states_are_born_sharded_and_stay_so():
    learner = make_learner("ppo", mesh=(2, 2, 2))
    policy = tiny.markov_params(7)
    state = learner.start(jax.random.key(0), policy)

    def check(state):
        for x, s in zip(*map(jax.tree.leaves, (state, learner.state_shardings)), strict=True):
            assert x.sharding.is_equivalent_to(s, x.ndim)

    check(state)
    jax.tree.map(np.testing.assert_array_equal, state.params["policy"], policy)
    jax.tree.map(np.testing.assert_array_equal, state.reference, policy)
    assert not state.params["policy"]["embedding"].sharding.is_fully_replicated
    first = {"value_shift": 0.0, "value_scale": 1.0, "kl_coefficient": np.float32(0.2)}
    assert int(state.step) == 0 and jax.tree.map(float, state.controls) == first
    batch, context = learner.prepare(state, ragged_rollout())
    old = state
    state, _ = learner.update(state, batch, context)
    check(state)
    jax.tree.map(np.testing.assert_array_equal, state.reference, policy)
    # The old state was donated.
    assert all(x.is_deleted() for x in jax.tree.leaves(old.params))
    with pytest.raises(ValueError, match="has 3 rows"):
        learner.prepare(state, tiny.take(ragged_rollout(), slice(3)))


# --- whole iterations ---------------------------------------------------------------------------


def iterate(learner, key, count):
    """Iterations on different rollouts: copies of all states, and all metrics."""
    state = learner.start(key)
    states, history = [host_copy(state)], []
    for n in range(count):
        batch, context = learner.prepare(state, ragged_rollout(n))
        state, metrics = learner.update(state, batch, context)
        states.append(host_copy(state))
        history.append(metrics)
    return states, history


@pytest.mark.slow
def test_runs_repeat_bit_by_bit_and_compile_once():
    learner = make_learner("dfpo", "adamw", Schedule(epochs=2, minibatches=2))
    first = iterate(learner, jax.random.key(0), 1)
    traced = len(learner.model.shapes)
    again = iterate(learner, jax.random.key(0), 2)
    assert len(learner.model.shapes) == traced
    states, history = again
    chex.assert_trees_all_equal(first, (states[:2], history[:1]))
    assert [int(state.step) for state in states] == [0, 1, 2]
    assert all(moved(states[1].params, states[2].params))
    assert history[0] != history[1]
    assert all(type(x) is float for x in history[0].values())
    assert {"policy/gradient_norm", "critic/gradient_norm", "policy/loss"} <= set(history[0])


def test_the_key_decides():
    learner = make_learner("ppo")
    first, other = (iterate(learner, jax.random.key(seed), 0)[0][0] for seed in (0, 1))
    differ = jax.tree.map(lambda a, b: np.any(a != b), first.params, other.params)
    assert differ["policy"] == {"embedding": True, "head": True}
    assert first.reference["head"].tolist() == first.params["policy"]["head"].tolist()


@pytest.mark.parametrize("name", ["ppo", "dfpo"])
def test_the_policy_rests_while_the_critic_warms_up(name):
    learner = make_learner(name, "adamw", warmup=1)
    (start, warm, trained), _ = iterate(learner, jax.random.key(0), 2)
    chex.assert_trees_all_equal(
        *[(s.params["policy"], s.opt_state["policy"]) for s in (start, warm)]
    )
    assert any(moved(start.params["critic"], warm.params["critic"]))
    assert all(moved(warm.params["policy"], trained.params["policy"]))


def test_predictions_come_as_host_arrays_or_none():
    rollout, model = ragged_rollout(), Markov()
    optimizers, mesh = make_optimizers("sgd"), create_mesh(2, 2, 1)
    algorithm = make_algorithm("dfpo", model)
    learner, state = Learner(model, algorithm, optimizers, ONCE, mesh), tiny.make_state(algorithm)
    quantiles = learner.predict(state, rollout)
    assert isinstance(quantiles, np.ndarray) and quantiles.shape == (8, 5, FLOW.num_quantiles)
    assert learner.trajectories(state, rollout).shape == (17, 8, FLOW.num_quantiles)
    assert make_learner("ppo").trajectories(state, rollout) is None
    optimizers = {"policy": optax.sgd(0.1)}
    supervised = Learner(model, sft(model), optimizers, ONCE, create_mesh())
    assert supervised.predict(state, rollout) is None
    state = supervised.start(jax.random.key(0))
    assert set(state.params) == set(state.opt_state) == {"policy"} and state.reference is None
