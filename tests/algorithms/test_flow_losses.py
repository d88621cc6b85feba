"""The flow critic's losses: their values, what they stop, and that they learn a distribution."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference_critic
import tiny
from tiny import constant, widening

from dfpo_jax import ops
from dfpo_jax.algorithms import flow_critic
from dfpo_jax.algorithms.flow_critic import FlowCriticConfig
from dfpo_jax.models import ValueFlow, value_flow

BATCH, TIME = 6, 4
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


def linear(theta, shift):
    """velocity(z, t, d) = a + b z + c t z + e d + shift, for arrays and for numbers."""
    a, b, c, e = theta
    return lambda z, t, d: a + b * z + c * t * z + e * d + shift


@pytest.mark.parametrize(
    ("base", "geometry", "solver", "first_step", "bound", "discount"),
    [
        ("keep", "map", "midpoint", 2.0, 0.0, 0.9),
        ("shift", "reflow", "heun", 0.5, 0.0, 1.0),
        ("keep", "straight", "rk4", 3.0, 0.5, 0.7),
        ("shift", "map", "euler", 1.0, 0.5, 0.8),
        ("keep", "straight", "euler", 2.0, 0.0, 1.0),
    ],
)
def test_flow_losses_equal_loops(base, geometry, solver, first_step, bound, discount, monkeypatch):
    config = FlowCriticConfig(
        num_samples=3,
        num_steps=3,
        solver=solver,
        first_step=first_step,
        value_bound=bound,
        inference="ode",
        dcfm_base=base,
        geometry=geometry,
    )
    rng = np.random.default_rng(5)
    goals = rng.normal(size=(2, 3, 3)).astype(np.float32)
    rewards, *shifts = rng.normal(size=(4, 2, 3)).astype(np.float32)
    thetas = (0.3, -0.8, 0.5, -0.4), (-0.2, 1.6, -0.7, 0.9), (0.4, -1.3, 0.8, 0.2)
    keys, drawn, inner = [], [], flow_critic._draw

    def draw(sampler, key, shape):
        keys.append(tuple(jax.random.key_data(key).tolist()))
        drawn.append(np.asarray(inner(sampler, key, shape)))
        return drawn[-1]

    monkeypatch.setattr(flow_critic, "_draw", draw)
    fields = [linear(theta, shift[..., None]) for theta, shift in zip(thetas, shifts, strict=True)]
    losses = flow_critic.flow_losses(
        config, jax.random.key(3), *fields, goals, rewards, discount=discount
    )
    assert len(set(keys)) == len(keys) == 6
    for times in drawn[1::2]:  # one in each third of the horizon
        np.testing.assert_array_equal(np.floor(3 * times), np.broadcast_to(range(3), times.shape))
    live, frozen, after = (
        lambda b, i, theta=theta, shift=shift: linear(theta, float(shift[b, i]))
        for theta, shift in zip(thetas, shifts, strict=True)
    )
    clip = (-bound, bound) if bound else None
    by_token, ref = reference_critic.by_token, reference_critic
    expected = {
        "anchor": by_token(ref.anchor, (live,), (goals, *drawn[:2])),
        "dcfm": by_token(
            ref.distributional_cfm,
            (live, after),
            (rewards, *drawn[2:4]),
            *(discount, 3, solver, base, clip),
        ),
        "geometry": by_token(
            ref.geometric_consistency,
            (live, frozen),
            drawn[4:],
            *(geometry, 3, solver, first_step, clip),
        ),
    }
    assert set(losses) == set(expected)
    for name, x in expected.items():
        np.testing.assert_allclose(losses[name], x, rtol=1e-4, atol=1e-5, err_msg=name)


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
        q = math.exp(tiny.SLOPE) * grid + centre[index]
        goal = (1 + tiny.SLOPE / 2) ** 2 * grid
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


@pytest.mark.slow
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


# --- bounds -------------------------------------------------------------------------------------


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
