"""The flow critic as pure functions of velocities: inference, targets, losses, and learning."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
import reference_critic
import tiny
from tiny import fast_compile  # noqa: F401

from dfpo_jax import ops
from dfpo_jax.algorithms import flow_critic
from dfpo_jax.algorithms.flow_critic import FlowCriticConfig
from dfpo_jax.models import ValueFlow, value_flow

pytestmark = pytest.mark.usefixtures("fast_compile")

BATCH, TIME = 6, 4
SLOPE = 0.6


def constant(centre):
    """A field [B, T] that shifts the noise: z_1 = eps + centre, by any solver."""
    return lambda z, t, d: jnp.broadcast_to(jnp.asarray(centre)[..., None], z.shape) + 0 * z


def widening(centre):
    """z_1 = exp(SLOPE) eps + centre in the flow map, an exponential growth in the field."""

    def velocity(z, t, d):
        field = SLOPE * z
        jump = (math.exp(SLOPE) - 1) * z + jnp.asarray(centre)[..., None]
        return jnp.where(d > 0.5, jump, field)

    return velocity


# --- inference ----------------------------------------------------------------------------------


def test_inference_reads_the_map_or_integrates(variant):
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(BATCH, TIME, 5)).astype(np.float32)
    velocity = widening(np.zeros((BATCH, TIME), np.float32))
    for inference, factor in [("one_step", math.exp(SLOPE)), ("ode", (1 + SLOPE / 3) ** 3)]:
        config = FlowCriticConfig(inference=inference, num_steps=3, solver="euler", first_step=1.0)
        out = variant(lambda z, c=config: flow_critic.flow_samples(c, velocity, z))(noise)
        np.testing.assert_allclose(out, factor * noise, rtol=1e-5)


def test_quantiles_are_sorted_even_where_paths_cross():
    config = FlowCriticConfig(num_quantiles=6)
    folded = flow_critic.state_quantiles(config, lambda z, t, d: -2.0 * z, (BATCH, TIME))
    grid = np.asarray(ops.noise_quantiles(6))
    np.testing.assert_allclose(folded, np.broadcast_to(grid, (BATCH, TIME, 6)), atol=1e-6)


def test_spread_is_the_mean_derivative_of_the_frozen_flow():
    config = FlowCriticConfig(num_steps=3, solver="euler", first_step=1.0, num_samples=7)

    def velocity(z, t, d):  # the derivative differs from point to point
        return jnp.sin(2.0 * z) - z

    out = flow_critic.spread(config, velocity, (2, 3))
    step, slopes = 1e-3, []
    for start in np.asarray(ops.noise_quantiles(7), float):
        ends = []
        for z in (start - step, start + step):
            for _ in range(3):
                z = z + (math.sin(2 * z) - z) / 3
            ends.append(z)
        slopes.append(abs(ends[1] - ends[0]) / (2 * step))
    np.testing.assert_allclose(out, np.full((2, 3), np.mean(slopes)), rtol=1e-3)


# --- targets ------------------------------------------------------------------------------------


def targets(config, lambda_, discount=1.0, seed=1, samples=4):
    """Targets of a shifting critic on masks with holes, and all that they follow from."""
    rng = np.random.default_rng(seed)
    mask = reference.random_mask(rng, BATCH, TIME)
    bootstrap = np.arange(BATCH) % 2 == 1
    rewards = (rng.normal(size=mask.shape) * mask).astype(np.float32)
    centres = rng.normal(size=(BATCH, TIME + 1)).astype(np.float32)
    after = np.zeros((BATCH, TIME), np.float32)  # centre of the next valid state
    for b, row in enumerate(mask):
        slots = [i for i, m in enumerate(row) if m > 0]
        for i in slots:
            after[b, i] = centres[b, next((j for j in slots if j > i), i + 1)]
    config = dataclasses.replace(config, num_samples=samples)
    out = jax.jit(
        lambda key: flow_critic.return_targets(
            config,
            key,
            constant(centres[:, :-1]),
            constant(after),
            rewards,
            mask,
            discount=discount,
            critic_lambda=lambda_,
            bootstrap=bootstrap,
        )
    )(jax.random.key(seed))
    return np.asarray(out), rewards, centres, after, mask, bootstrap


def test_mixture_targets_have_the_mean_and_spread_of_their_law():
    samples, discount = 4000, 0.9
    for lambda_ in (0.0, 0.7):
        out, rewards, centres, after, mask, bootstrap = targets(
            FlowCriticConfig(), lambda_, discount, samples=samples
        )
        for b, row in enumerate(mask):
            slots = [i for i, m in enumerate(row) if m > 0]
            final = after[b, slots[-1]] * bootstrap[b] if slots else 0.0
            mean = reference_critic.gae_returns(
                rewards[b], centres[b], row, discount, lambda_, final
            )
            for i in slots:
                error = 6 * out[b, i].std() / math.sqrt(samples) + 1e-5
                assert abs(out[b, i].mean() - mean[i]) < error
                ends = i == slots[-1]
                if lambda_ == 0.0:  # r + discount (eps + centre), or r alone at the end
                    spread = 0.0 if ends and not bootstrap[b] else discount
                    assert abs(out[b, i].std() - spread) < 0.06


def test_targets_at_lambda_one_are_the_observed_returns():
    out, rewards, _, _, mask, bootstrap = targets(FlowCriticConfig(), 1.0, 0.9)
    for b in np.flatnonzero(~bootstrap):
        total = 0.0
        for i in reversed(np.flatnonzero(mask[b])):
            total = rewards[b, i] + 0.9 * total
            np.testing.assert_allclose(out[b, i], total, atol=1e-5)


def test_average_targets_equal_a_loop_per_quantile():
    config = FlowCriticConfig(target_mode="average")
    out, rewards, centres, after, mask, bootstrap = targets(config, 0.7, 0.9, samples=5)
    grid = np.asarray(ops.noise_quantiles(5))
    order_kept = True
    for b, row in enumerate(mask):
        slots = np.flatnonzero(row)
        for q, noise in enumerate(grid):
            final = (after[b, slots[-1]] + noise) * bootstrap[b] if len(slots) else 0.0
            expected = reference_critic.gae_returns(
                rewards[b], centres[b] + noise, row, 0.9, 0.7, final
            )
            np.testing.assert_allclose(
                np.sort(out[b], axis=-1)[slots, q], expected[slots], atol=1e-5
            )
            order_kept &= np.allclose(out[b][slots, q], expected[slots], atol=1e-5)
    assert not order_kept  # times are stratified along the same axis: quantiles must be shuffled


def test_targets_differ_by_key_and_carry_no_gradient():
    config = FlowCriticConfig(num_samples=3)
    zeros, ones = np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)

    def total(centre, key):
        centre = jnp.broadcast_to(centre, (2, 3))
        return jnp.sum(
            flow_critic.return_targets(
                config,
                key,
                constant(centre),
                constant(centre),
                zeros,
                ones,
                discount=1.0,
                critic_lambda=0.5,
                bootstrap=np.ones(2, bool),
            )
        )

    (value, grad), (other, _) = (
        jax.jit(jax.value_and_grad(total))(jnp.float32(0.3), jax.random.key(seed))
        for seed in (0, 1)
    )
    assert value != other
    assert grad == 0.0


# --- losses -------------------------------------------------------------------------------------

WEIGHTS = {
    "anchor": "anchor_weight",
    "dcfm": "dcfm_weight",
    "geometry": "geometry_weight",
    "cvar": "cvar_weight",
    "upper_gain": "upper_gain_weight",
    "mean_shift": "mean_shift_weight",
    "tail_shape": "tail_shape_weight",
    "tail_curvature": "tail_curvature_weight",
}


def make_losses(config, keys, rows=slice(None), seed=2):
    """Losses of three fields with different centres: {name: [B, T]}."""
    rng = np.random.default_rng(seed)
    live, frozen, after = rng.normal(size=(3, BATCH, TIME)).astype(np.float32)
    goals = rng.normal(size=(BATCH, TIME, config.num_samples)).astype(np.float32)
    rewards = rng.normal(size=(BATCH, TIME)).astype(np.float32)
    return flow_critic.flow_losses(
        config,
        keys,
        widening(live[rows]),
        widening(frozen[rows]),
        widening(after[rows]),
        goals[rows],
        rewards[rows],
        discount=0.9,
    )


def test_only_weighted_losses_are_returned():
    off = {field: 0.0 for field in WEIGHTS.values()}
    for name, field in WEIGHTS.items():
        config = FlowCriticConfig(**{**off, field: 0.25}, inference="ode", num_quantiles=5)
        losses = jax.eval_shape(lambda key, c=config: make_losses(c, key), jax.random.key(0))
        assert {k: v.shape for k, v in losses.items()} == {name: (BATCH, TIME)}
        assert flow_critic.loss_weight(config, name) == 0.25
        assert config.uses_risk == (name not in ("anchor", "dcfm", "geometry"))
    with pytest.raises(KeyError):
        flow_critic.loss_weight(config, "other")


def test_a_rows_draws_do_not_depend_on_its_neighbours():
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), np.arange(BATCH))
    whole = jax.jit(lambda keys: make_losses(tiny.FLOW, keys))(keys)
    assert set(whole) == set(WEIGHTS)
    rows, drawn = np.asarray([4, 1, 1]), keys[np.asarray([4, 1, 0])]
    part = jax.jit(lambda keys: make_losses(tiny.FLOW, keys, rows))(drawn)
    for name in WEIGHTS:
        np.testing.assert_allclose(part[name][:2], whole[name][rows[:2]], rtol=1e-6, atol=1e-6)
    assert np.all(np.asarray(whole["anchor"]) > 0)
    # Rows get noise of their own: two equal rows have different losses.
    for name in ("anchor", "dcfm", "geometry"):
        assert np.all(np.asarray(part[name][1]) != np.asarray(part[name][2]))
    single = jax.eval_shape(lambda key: make_losses(tiny.FLOW, key), jax.random.key(0))
    assert {k: v.shape for k, v in single.items()} == {k: v.shape for k, v in whole.items()}


@pytest.mark.parametrize("risk_targets", ["flow", "returns"])
def test_risk_losses_equal_loops(risk_targets):
    rng = np.random.default_rng(3)
    config = dataclasses.replace(
        tiny.FLOW,
        risk_targets=risk_targets,
        num_quantiles=6,
        num_samples=5,
        solver="euler",
        first_step=1.0,
    )
    centre = rng.normal(size=(BATCH, TIME)).astype(np.float32)
    goals = rng.normal(size=(BATCH, TIME, 5)).astype(np.float32)
    out = flow_critic.risk_losses(config, widening(centre), widening(0 * centre), goals)
    grid = np.asarray(ops.noise_quantiles(6), float)
    for index in np.ndindex(BATCH, TIME):
        q = math.exp(SLOPE) * grid + centre[index]
        goal = (1 + SLOPE / 2) ** 2 * grid
        if risk_targets == "returns":
            goal = np.sort(goals[index]).astype(float)
        expected = reference_critic.risk_losses(q, goal, 0.3, 0.3)
        assert set(out) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(out[name][index], value, rtol=1e-4, atol=1e-5)


def test_losses_stop_everything_but_the_live_field():
    rng = np.random.default_rng(4)
    inputs = {
        name: jnp.asarray(rng.normal(size=(2, 3)), jnp.float32)
        for name in ("live", "frozen", "after", "rewards")
    }
    inputs["targets"] = jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32)

    def total(x):
        losses = flow_critic.flow_losses(
            tiny.FLOW,
            jax.random.key(0),
            widening(x["live"]),
            constant(x["frozen"]),
            constant(x["after"]),
            x["targets"],
            x["rewards"],
            discount=0.9,
        )
        return sum(jnp.sum(loss) for loss in losses.values())

    grads = jax.jit(jax.grad(total))(inputs)
    assert np.all(np.asarray(grads.pop("live")) != 0)
    for name, grad in grads.items():
        np.testing.assert_array_equal(grad, 0.0, err_msg=name)


# --- learning -----------------------------------------------------------------------------------


def test_a_bimodal_return_is_learned():
    """Two states whose return is +1 or -1, with odds .8 and .3; one network step reads both."""
    config = FlowCriticConfig(num_samples=16, num_quantiles=20)
    head = ValueFlow(value_flow.ValueFlowConfig(hidden=32, condition_dim=16))
    odds, rows = jnp.asarray([0.8, 0.3]), 16
    features = jnp.broadcast_to(jnp.eye(2), (rows, 2, 2))
    shape = (rows, 2, config.num_samples)
    steps = 500
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, steps))

    def velocity(params, features):
        condition = head.apply(params, features, method="condition")
        return lambda z, t, d: head.apply(params, condition, z, t, d, method="velocity")

    def step(carry, key):
        params, moments = carry
        coins, noise, losses = jax.random.split(key, 3)
        heads = jax.random.uniform(coins, shape) < odds[None, :, None]
        goals = jnp.where(heads, 1.0, -1.0) + 0.1 * jax.random.normal(noise, shape)
        frozen = velocity(params, features)

        def loss(params):
            live = velocity(params, features)
            terms = flow_critic.flow_losses(
                config, losses, live, frozen, frozen, goals, jnp.zeros((rows, 2)), discount=1.0
            )
            return sum(jnp.mean(term) for term in terms.values())

        updates, moments = optimizer.update(jax.grad(loss)(params), moments)
        return (optax.apply_updates(params, updates), moments), None

    @jax.jit
    def train():
        params = nn.unbox(head.init(jax.random.key(0), features, jnp.zeros(shape), 0.0, 0.0))
        keys = jax.random.split(jax.random.key(1), steps)
        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), keys)
        learned = velocity(params, features[:1])
        integrated = dataclasses.replace(config, inference="ode", num_steps=16)
        return [flow_critic.state_quantiles(c, learned, (1, 2))[0] for c in (config, integrated)]

    one_step, integrated = (np.asarray(x) for x in train())
    rng = np.random.default_rng(0)
    for state, up in enumerate([0.8, 0.3]):
        levels = (np.arange(20) + 0.5) / 20
        sample = np.where(rng.uniform(size=200_000) < up, 1.0, -1.0)
        truth = np.quantile(sample + 0.1 * rng.normal(size=sample.size), levels)
        unlearned = np.abs(np.asarray(ops.noise_quantiles(20)) - truth).mean()
        distances = [np.abs(q[state] - truth).mean() for q in (one_step, integrated)]
        assert unlearned > 0.5
        assert distances[0] < 0.15 and distances[1] < 0.04


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "num_samples is 0"),
        ({"num_steps": 0}, "num_steps is 0"),
        ({"num_quantiles": 2}, "num_quantiles is 2"),
        ({"solver": "rk5"}, "solver is 'rk5'.*euler, heun, midpoint, rk4"),
        ({"inference": "two_step"}, "inference is 'two_step'"),
        ({"target_mode": "both"}, "target_mode is 'both'"),
        ({"dcfm_base": "drop"}, "dcfm_base is 'drop'"),
        ({"geometry": "curved"}, "geometry is 'curved'"),
        ({"risk_targets": "none"}, "risk_targets is 'none'"),
        ({"uncertainty": "some"}, "uncertainty is 'some'"),
        ({"cvar_weight": -1.0}, "cvar_weight is -1.0"),
        ({"first_step": 0.0}, "first_step is 0.0"),
        ({"tail_alpha": 0.0}, "tail_alpha is 0.0"),
        ({"tail_beta": 1.5}, "tail_beta is 1.5"),
        ({"uncertainty_temperature": 0.0}, "uncertainty_temperature is 0.0"),
        ({"geometry": "straight"}, 'inference is "one_step".*geometry "map"'),
        ({"geometry_weight": 0.0}, 'inference is "one_step".*positive geometry_weight'),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        FlowCriticConfig(**options)


def test_the_value_bound_holds_for_targets_flow_and_losses():
    """A field that doubles its state, and rewards far out."""
    config = FlowCriticConfig(num_samples=4, value_bound=2.0)
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(BATCH, TIME, 4)).astype(np.float32)

    def steep(z, t, d):
        return 50.0 * z

    for inference in ("one_step", "ode"):
        chosen = dataclasses.replace(config, inference=inference)
        out = np.asarray(flow_critic.flow_samples(chosen, steep, noise))
        assert np.abs(out).max() == 2.0
    rewards = np.zeros((BATCH, TIME), np.float32)
    rewards[:, -1] = [100.0 if row % 2 else -100.0 for row in range(BATCH)]
    targets = flow_critic.return_targets(
        config,
        jax.random.key(0),
        steep,
        steep,
        rewards,
        np.ones((BATCH, TIME), np.float32),
        discount=1.0,
        critic_lambda=1.0,
        bootstrap=np.zeros(BATCH, bool),
    )
    np.testing.assert_array_equal(targets, np.sign(rewards[:, -1:, None]) * np.full_like(noise, 2))
    losses = flow_critic.flow_losses(
        config, jax.random.key(1), steep, steep, steep, targets, 0 * rewards, discount=1.0
    )
    # |v(eps) - (z_1 - eps)| <= 50 |eps| + 2 + |eps|, with |eps| < 5.
    assert 0 < np.asarray(losses["geometry"]).max() < (51 * 5 + 2) ** 2
    free = flow_critic.flow_losses(
        dataclasses.replace(config, value_bound=0.0),
        *(jax.random.key(1), steep, steep, steep, targets, 0 * rewards),
        discount=1.0,
    )
    assert np.asarray(free["geometry"]).max() > 1e6
