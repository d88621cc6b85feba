"""The flow critic's losses as functions of velocities: their values, and what they stop."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_critic
import tiny
from tiny import constant, widening

from dfpo_jax import ops
from dfpo_jax.critics import Flow, flow_losses
from dfpo_jax.critics.flow_losses import Fields, tail_losses
from dfpo_jax.critics.tails import tail_weights
from dfpo_jax.types import Steps

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


def evaluate(config, keys, fields, targets, rewards, discount=0.9, weight=None):
    """{name: Loss} where all tokens are valid."""
    ones = jnp.ones(rewards.shape)
    steps = Steps(rewards, ones, jnp.zeros(len(rewards), bool), discount)
    weight = ones if weight is None else weight
    return flow_losses.flow_losses(config, keys, fields, targets, steps, ones, weight)


def make_losses(config, keys, rows=slice(None), seed=2, weight=None):
    """Losses of three fields with different centres: {name: Loss of [B, T]}."""
    rng = np.random.default_rng(seed)
    fields = rng.normal(size=(3, BATCH, TIME)).astype(np.float32)[:, rows]
    goals = rng.normal(size=(BATCH, TIME, config.num_samples)).astype(np.float32)
    rewards = rng.normal(size=(BATCH, TIME)).astype(np.float32)
    return evaluate(
        config, keys, Fields(*map(widening, fields)), goals[rows], rewards[rows], weight=weight
    )


@functools.cache
def compiled(rows):
    """Jitted (keys, weight) -> {name: [B, T]} of some rows, with every loss."""

    def values(keys, weight):
        losses = make_losses(tiny.FLOW, keys, np.asarray(rows), weight=weight)
        return {name: loss.per_token for name, loss in losses.items()}

    return jax.jit(values)


def row_keys():
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), np.arange(BATCH))


def test_only_weighted_losses_are_returned_with_their_weights():
    off = {field: 0.0 for field in WEIGHTS.values()}
    for name, field in WEIGHTS.items():
        config = Flow(**{**off, field: 0.25}, inference="ode", num_quantiles=5)
        weights = {}

        def per_token(keys, config=config, weights=weights):
            losses = make_losses(config, keys)
            weights.update({name: loss.weight for name, loss in losses.items()})
            return {name: loss.per_token for name, loss in losses.items()}

        shapes = jax.eval_shape(per_token, row_keys())
        assert {k: v.shape for k, v in shapes.items()} == {name: (BATCH, TIME)}
        assert weights == {name: 0.25}
        tails = {k: v for k, v in tail_weights(config).items() if v}
        assert tails == ({} if name in ("anchor", "dcfm", "geometry") else {name: 0.25})


def test_a_rows_draws_do_not_depend_on_its_neighbours():
    keys, ones = row_keys(), np.ones((BATCH, TIME), np.float32)
    whole = compiled(tuple(range(BATCH)))(keys, ones)
    assert set(whole) == set(WEIGHTS)
    part = compiled((4, 1, 1))(keys[np.asarray([4, 1, 0])], ones[:3])
    for name in WEIGHTS:
        expected = np.asarray(whole[name])[[4, 1]]
        np.testing.assert_allclose(part[name][:2], expected, rtol=1e-6, atol=1e-6)
    assert np.all(np.asarray(whole["anchor"]) > 0)
    # Rows get noise of their own: two equal rows have different losses.
    for name in ("anchor", "dcfm", "geometry"):
        assert np.all(np.asarray(part[name][1]) != np.asarray(part[name][2]))


def test_the_uncertainty_weight_is_for_anchor_and_flow_matching_alone():
    one, two = (
        compiled(tuple(range(BATCH)))(row_keys(), np.full((BATCH, TIME), factor, np.float32))
        for factor in (1, 2)
    )
    for name in WEIGHTS:
        factor = 2 if name in ("anchor", "dcfm") else 1
        np.testing.assert_allclose(two[name], factor * np.asarray(one[name]), rtol=1e-6)


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
    config = Flow(
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
    keys, drawn, inner = [], [], flow_losses.draw

    def draw(sampler, rows, shape):
        keys.extend(tuple(key) for key in jax.random.key_data(rows).tolist())
        drawn.append(np.asarray(inner(sampler, rows, shape)))
        return drawn[-1]

    monkeypatch.setattr(flow_losses, "draw", draw)
    fields = [linear(theta, shift[..., None]) for theta, shift in zip(thetas, shifts, strict=True)]
    losses = evaluate(
        config, jax.random.split(jax.random.key(3), 2), Fields(*fields), goals, rewards, discount
    )
    assert len(set(keys)) == len(keys) == 12  # six draws of two rows
    for times in drawn[1::2]:  # one in each third of the horizon
        np.testing.assert_array_equal(np.floor(3 * times), np.broadcast_to(range(3), times.shape))
    live, old, after = (
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
            (live, old),
            drawn[4:],
            *(geometry, 3, solver, first_step, clip),
        ),
    }
    assert set(losses) == set(expected)
    for name, x in expected.items():
        found = losses[name].per_token
        np.testing.assert_allclose(found, x, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("tail_targets", ["flow", "returns"])
def test_tail_losses_equal_loops(tail_targets):
    rng = np.random.default_rng(3)
    config = dataclasses.replace(
        tiny.FLOW,
        tail_targets=tail_targets,
        num_quantiles=6,
        num_samples=5,
        solver="euler",
        first_step=1.0,
    )
    centre = rng.normal(size=(BATCH, TIME)).astype(np.float32)
    goals = rng.normal(size=(BATCH, TIME, 5)).astype(np.float32)
    out = tail_losses(config, widening(centre), widening(0 * centre), goals)
    grid = np.asarray(ops.noise_quantiles(6), float)
    for index in np.ndindex(BATCH, TIME):
        q = math.exp(tiny.SLOPE) * grid + centre[index]
        goal = (1 + tiny.SLOPE / 2) ** 2 * grid
        if tail_targets == "returns":
            goal = np.sort(goals[index]).astype(float)
        expected = reference_critic.risk_losses(q, goal, 0.3, 0.3)
        assert set(out) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(out[name].per_token[index], value, rtol=1e-4, atol=1e-5)


def test_losses_stop_everything_but_the_live_field():
    rng = np.random.default_rng(4)
    inputs = {
        name: jnp.asarray(rng.normal(size=(2, 3)), jnp.float32)
        for name in ("live", "old", "after", "rewards")
    }
    inputs["targets"] = jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32)

    def total(x):
        fields = Fields(widening(x["live"]), constant(x["old"]), constant(x["after"]))
        keys = jax.random.split(jax.random.key(0), 2)
        losses = evaluate(tiny.FLOW, keys, fields, x["targets"], x["rewards"])
        return sum(jnp.sum(loss.per_token) for loss in losses.values())

    grads = jax.jit(jax.grad(total))(inputs)
    assert np.all(np.asarray(grads.pop("live")) != 0)
    for name, grad in grads.items():
        np.testing.assert_array_equal(grad, 0.0, err_msg=name)
