"""The update by hand: order of the rows, keys, metrics, and what is not finite."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import Markov, ragged_rollout

from dfpo_jax.algorithms import Algorithm, AlgorithmConfig, Batch, Context, compose
from dfpo_jax.critics import Critics
from dfpo_jax.models import Transformer, TransformerConfig
from dfpo_jax.sharding import create_mesh
from dfpo_jax.training.gradients import accumulate_gradients
from dfpo_jax.training.learner import Learner
from dfpo_jax.training.update import Schedule, init_policy, init_state, update
from dfpo_jax.types import Term, rollout_of

ONCE = Schedule()


def make_optimizers():
    return {name: optax.sgd(1.0) for name in ("policy", "critic")}


def toy(root=False):
    """Row r's gradient is its advantage; the critic's is a random number.

    With `root` the policy's loss is 0 and its gradient, a root's at 0, is not finite.
    """

    def init(key, policy_params):
        del key, policy_params
        return {"policy": {"rows": jnp.zeros(8)}, "critic": {"bias": jnp.zeros(())}}

    def prepare(state, rollout, key):
        ones = jnp.ones(len(rollout.tokens))
        batch = Batch(
            row=jnp.arange(8),
            sequence=ones,
            valid=ones,
            tokens=rollout.tokens,
            mask=ones,
            old_log_probs=ones,
            ref_log_probs=None,
            importance=ones,
            advantages=rollout.rewards,
        )
        return batch, Context({}, jnp.float32(1.0))

    def loss(params, batch, context, key):
        values = params["policy"]["rows"][batch.row]
        values = jnp.sqrt(jnp.abs(values)) if root else values * batch.advantages
        count = jnp.float32(len(batch.row))
        noise = params["critic"]["bias"] * jax.random.uniform(key)
        return {
            "policy/loss": Term(jnp.sum(values), count, 1.0),
            "critic/loss": Term(noise * count, count, 1.0),
        }

    return Algorithm(init, prepare, loss)


@functools.cache
def toy_update(schedule, root):
    optimizers = make_optimizers()
    run = functools.partial(
        update, algorithm=toy(root), optimizers=optimizers, schedule=Schedule(*schedule)
    )
    return jax.jit(run), optimizers


def run_toy(schedule, rewards=None, root=False, step=0):
    run, optimizers = toy_update(schedule, root)
    state = init_state(toy(root), optimizers, {}, jax.random.key(0))
    state = state.replace(step=jnp.int32(step))
    rollout = ragged_rollout()
    rollout = rollout.replace(rewards=np.ones(8, np.float32) if rewards is None else rewards)
    batch, context = toy(root).prepare(state, rollout, None)
    return state, *run(state, batch, context)


@pytest.mark.parametrize("schedule", [(1, 1, 1), (1, 4, 1), (3, 2, 2), (2, 1, 8)])
@pytest.mark.parametrize("step", [0, 3])
def test_every_epoch_visits_every_row_once(schedule, step):
    before, after, metrics, report = run_toy(schedule, step=step)
    schedule = Schedule(*schedule)
    assert int(after.step) == step + 1
    size = 8 // schedule.minibatches
    np.testing.assert_allclose(after.params["policy"]["rows"], -schedule.epochs / size, rtol=1e-6)
    # One key for each update, from the run's key, the iteration and the update's number.
    updates = schedule.epochs * schedule.minibatches
    key = jax.random.fold_in(before.key, step)
    draws = [jax.random.uniform(jax.random.fold_in(key, n)) for n in range(updates)]
    np.testing.assert_allclose(after.params["critic"]["bias"], -sum(draws), rtol=1e-5)
    np.testing.assert_allclose(metrics["critic/gradient_norm"], np.mean(draws), rtol=1e-5)
    assert all(jax.tree.leaves(report["finite"]))
    assert (int(report["applied"]), int(report["worst"])) == (updates, 0)


def test_minibatches_are_drawn_anew_each_iteration_and_epoch():
    """A row that is not finite takes its minibatch with it: who that is differs."""
    rewards, pairs = np.ones(8, np.float32), []
    rewards[0] = np.nan
    for step in range(4):
        partners = []
        for epochs in (1, 2):
            _, after, _, _ = run_toy((epochs, 4, 1), rewards, step=step)
            # Of two rows per minibatch each applied one moves both by a half.
            lost = epochs + 2 * np.asarray(after.params["policy"]["rows"])
            assert lost[0] == epochs and lost.sum() == 2 * epochs
            partners.append(lost[1:])
        # The first epoch of two is the only one of one.
        pairs.append([partners[0], partners[1] - partners[0]])
        assert all(x.min() == 0.0 and x.max() == 1.0 for x in pairs[-1])
    first, second = np.argmax(pairs, axis=-1).T
    assert len(set(first)) > 1
    assert np.any(first != second)


def test_metrics_are_means_over_the_updates_that_were_applied():
    rewards = np.ones(8, np.float32)
    rewards[3] = np.inf
    before, _, metrics, report = run_toy((2, 4, 1), rewards)
    assert int(report["applied"]) == 6 and int(report["worst"]) in (1, 2)
    np.testing.assert_allclose(metrics["policy/gradient_norm"], 2**-0.5, rtol=1e-6)
    # Each update's critic gradient is a draw of its own; two of eight do not count.
    key = jax.random.fold_in(before.key, 0)
    draws = np.array([jax.random.uniform(jax.random.fold_in(key, n)) for n in range(8)])
    means = [np.delete(draws, (i, 4 + j)).mean() for i in range(4) for j in range(4)]
    assert np.isclose(metrics["critic/gradient_norm"], means, rtol=1e-5).any()


def test_an_update_that_is_not_finite_changes_nothing():
    rewards = np.ones(8, np.float32)
    rewards[3] = np.inf
    before, after, metrics, report = run_toy((1, 1, 1), rewards)
    finite = report["finite"]
    assert int(after.skipped) == int(report["worst"]) == 1 and int(report["applied"]) == 0
    assert all(np.isnan(x) for x in metrics.values())
    chex.assert_trees_all_equal(after.params, before.params)
    chex.assert_trees_all_equal(after.opt_state, before.opt_state)
    assert not finite["gradient"]["policy"]["rows"] and not finite["loss"]["policy/loss"]
    assert finite["gradient"]["critic"]["bias"] and finite["loss"]["critic/loss"]
    # Only the minibatch with the row is lost.
    _, after, metrics, report = run_toy((1, 2, 1), rewards)
    finite = report["finite"]
    assert int(report["worst"]) == int(report["applied"]) == 1
    np.testing.assert_allclose(metrics["policy/gradient_norm"], 0.5, rtol=1e-6)
    moved = np.asarray(after.params["policy"]["rows"])
    assert np.all(np.isfinite(moved)) and (moved != 0).sum() == 4 and moved[3] == 0
    assert not finite["gradient"]["policy"]["rows"]
    # Nor is one applied whose norm overflows.
    before, after, _, report = run_toy((1, 1, 1), np.full(8, 1e38, np.float32))
    chex.assert_trees_all_equal(after.params, before.params)
    assert report["finite"]["gradient"]["policy"]["rows"]
    assert not report["finite"]["norm"]["policy/gradient_norm"]
    # A finite loss does not hide a gradient that is none.
    before, after, _, report = run_toy((1, 1, 1), root=True)
    finite = report["finite"]
    chex.assert_trees_all_equal(after.params, before.params)
    assert finite["loss"]["policy/loss"] and not finite["gradient"]["policy"]["rows"]


def remembers_means():
    """An optimizer that keeps what it is told of the minibatch."""

    def init(params):
        del params
        return {name: jnp.zeros(()) for name in ("policy/loss", "critic/loss")}

    def change(updates, state, params=None, *, means, **extra):
        del state, params, extra
        return jax.tree.map(jnp.negative, updates), dict(means)

    return optax.GradientTransformationExtraArgs(init, change)


@pytest.mark.parametrize(("microbatches", "chained"), [(1, False), (2, True)])
def test_an_optimizer_that_asks_gets_the_means_of_the_minibatch(microbatches, chained):
    optimizer = remembers_means()
    if chained:  # behind others that do not ask
        optimizer = optax.chain(optax.identity(), optimizer)
    optimizers = {"policy": optimizer, "critic": optax.sgd(1.0)}
    algorithm, rollout = toy(), ragged_rollout()
    state = init_state(algorithm, optimizers, {}, jax.random.key(0))
    schedule = Schedule(epochs=2, microbatches=microbatches)
    run = functools.partial(update, algorithm=algorithm, optimizers=optimizers, schedule=schedule)
    after, metrics, _ = jax.jit(run)(state, *algorithm.prepare(state, rollout, None))
    seen = after.opt_state["policy"]
    seen = seen[-1] if chained else seen
    # The first update finds rows of 0 and leaves each at -r / 8; the loss of the second is their
    # product with r.
    second = -np.mean(np.square(rollout.rewards)) / 8
    np.testing.assert_allclose(seen["policy/loss"], second, rtol=1e-6)
    np.testing.assert_allclose(metrics["policy/loss"], second / 2, rtol=1e-6)
    key = jax.random.fold_in(state.key, 0)
    draws = [jax.random.uniform(jax.random.fold_in(key, number)) for number in range(2)]
    np.testing.assert_allclose(seen["critic/loss"], -draws[0] * draws[1], rtol=1e-5)


def test_what_is_not_finite_is_named():
    rollout = ragged_rollout()
    rollout = rollout.replace(rewards=np.full(8, np.nan, np.float32))
    learner = Learner(Markov(), toy(), make_optimizers(), ONCE, create_mesh())
    state = learner.start(jax.random.key(0))
    state = state.replace(step=jax.device_put(jnp.int32(6), state.step.sharding))
    with pytest.raises(FloatingPointError) as error:
        learner.update(state, *learner.prepare(state, rollout))
    assert str(error.value) == (
        "iteration 6: not finite: gradient/policy/rows, loss/policy/loss, "
        "norm/policy/gradient_norm; updates skipped: 1, 1 in a row (train.max_skipped allows 0)"
    )
    model = Markov()
    algorithm = compose(model, AlgorithmConfig(Critics("scalar")), 0.8)
    learner = Learner(model, algorithm, make_optimizers(), ONCE, create_mesh())
    state = learner.start(jax.random.key(0))
    with pytest.raises(FloatingPointError, match=r"iteration 0: not finite: .* and \d+ more"):
        learner.update(state, *learner.prepare(state, rollout))


def test_skipped_updates_are_counted_across_iterations_until_too_many(caplog):
    good = ragged_rollout().replace(rewards=np.ones(8, np.float32))
    bad = good.replace(rewards=np.full(8, np.nan, np.float32))
    learner = Learner(Markov(), toy(), make_optimizers(), ONCE, create_mesh(), max_skipped=2)
    state = learner.start(jax.random.key(0))
    counts = []
    for rollout in (bad, good, bad, bad):
        state, metrics = learner.update(state, *learner.prepare(state, rollout))
        counts.append((metrics["train/skipped_updates"], int(state.skipped)))
    assert counts == [(1.0, 1), (0.0, 0), (1.0, 1), (1.0, 2)]
    assert sum("not finite: gradient/policy/rows" in line for line in caplog.messages) == 3
    with pytest.raises(FloatingPointError, match="iteration 4: .* 3 in a row .* allows 2"):
        learner.update(state, *learner.prepare(state, bad))


@pytest.mark.slow
def test_a_critic_with_a_trunk_of_its_own_comes_after_the_policy():
    """The program then does not hold what both forward passes leave at once."""
    shape = TransformerConfig(64, 64, 2, 4, 4, 16, 128)
    model, critic = Transformer(shape), Critics("scalar", trunk="own")
    algorithm = compose(model, AlgorithmConfig(critic), 0.8)
    rollout = rollout_of(jax.ShapeDtypeStruct, 16, 32, 32)

    def temporary_bytes(algorithm):
        state = jax.eval_shape(
            lambda key: nn.unbox(init_state(algorithm, {}, init_policy(model, key), key)),
            jax.eval_shape(lambda: jax.random.key(0)),
        )
        key = jax.random.key(1)
        batch, context = jax.eval_shape(lambda *x: algorithm.prepare(*x, key), state, rollout)
        networks = ("policy", "critic")
        run = jax.jit(lambda *x: accumulate_gradients(algorithm, *x, key, 2, networks))
        memory = run.lower(state.params, batch, context).compile().memory_analysis()
        return memory.temp_size_in_bytes

    together = temporary_bytes(algorithm._replace(separate_critic=False))
    assert temporary_bytes(algorithm) < 0.75 * together
