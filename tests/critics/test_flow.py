"""The flow critic on states: what it reads, its targets and its losses, against loops."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_critic
import tiny
from critic_states import random_states, random_steps, row_keys, successors
from reference_policy import after_last, valid_slots

from dfpo_jax import ops
from dfpo_jax.critics import Flow, flow_losses
from dfpo_jax.models import ValueFlow

LAMBDA = 0.8
CONFIGS = {
    "all": tiny.FLOW,
    "average": Flow(tiny.HEAD, 4, 2, num_quantiles=5, target_mode="average"),
    "integrated": Flow(
        head=tiny.HEAD,
        num_samples=1000,
        num_steps=16,
        first_step=1.0,
        solver="euler",
        num_quantiles=5,
        inference="ode",
        uncertainty="discount",
        uncertainty_temperature=0.5,
    ),
}


class Case:
    """A flow critic away from its start, on random states."""

    def __init__(self, name, lambda_=LAMBDA):
        self.config, self.critic = CONFIGS[name], CONFIGS[name].build()
        self.states, self.steps = random_states(), random_steps()
        start = self.critic.init(jax.random.key(0), self.states.shape[-1])
        self.params = tiny.randomised(start, seed=1)
        self.reading = self.critic.read(self.params, self.states)
        self.rows = jax.jit(self.critic.targets)(
            jax.random.key(2), self.reading, self.steps, lambda_
        )

    @functools.cached_property
    def law(self):
        return np.asarray(self.critic.law(self.reading))

    def scalar_fields(self, params, states):
        """`field(b, i)` is the velocity of single numbers in the state `states[b, i]`."""
        head = ValueFlow(tiny.HEAD)
        conditions = head.apply({"params": params}, states, method="condition")

        @jax.jit
        def velocity(condition, z, t, d):
            inputs = condition[None], jnp.reshape(z, (1, 1)), t, d
            return head.apply({"params": params}, *inputs, method="velocity")[0, 0]

        def field(b, i):
            return lambda z, t, d: float(velocity(conditions[b, i], z, t, d))

        return field

    def table(self, noise):
        """[B, R + 1, S] what the flow makes of noise [S] in each state, by Euler steps."""
        flow, head, params = self.config, ValueFlow(tiny.HEAD), {"params": self.params}
        condition = head.apply(params, self.states, method="condition")

        @jax.jit
        def velocity(z, t, d):
            return head.apply(params, condition, z, t, d, method="velocity")

        z = np.broadcast_to(np.asarray(noise, np.float32), (*self.states.shape[:2], len(noise)))
        if flow.inference == "one_step":
            return z + np.asarray(velocity(z, 0.0, 1.0), float)
        widths = np.array([flow.first_step] + [1.0] * (flow.num_steps - 1))
        widths, begin = widths / widths.sum(), 0.0
        for width in widths:
            z, begin = z + np.asarray(velocity(z, begin, 0.0), float) * width, begin + width
        return z


case = functools.cache(Case)


# --- what is read -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["all", "integrated"])
def test_the_law_is_what_the_flow_makes_of_the_noise_quantiles(name):
    this = case(name)
    expected = np.sort(this.table(np.asarray(ops.noise_quantiles(5))), axis=-1)
    np.testing.assert_allclose(this.law, expected, atol=2e-5)
    assert this.law.std(axis=-1).min() > 0.05 and np.ptp(this.law.mean(axis=-1)) > 0.1


def test_paths_run_from_the_noise_to_the_quantiles():
    this = case("integrated")  # which integrates in the 16 steps that are drawn
    paths = np.asarray(this.critic.paths(this.reading))
    assert paths.shape == (17, *this.law.shape)
    grid = np.asarray(ops.noise_quantiles(5))
    np.testing.assert_allclose(paths[0], np.broadcast_to(grid, this.law.shape), atol=1e-6)
    np.testing.assert_allclose(np.sort(paths[-1]), this.law, atol=1e-5)


# --- targets ------------------------------------------------------------------------------------


def test_targets_at_lambda_zero_are_the_flow_of_the_next_valid_state():
    this = case("integrated", 0.0)
    rewards, samples = np.asarray(this.steps.rewards), np.asarray(this.rows.samples)
    table = this.table(np.random.default_rng(0).normal(size=2000))
    following = successors(this.steps.mask)
    for b, row in enumerate(this.steps.mask):
        slots = valid_slots(row)
        for i in slots:
            expected = rewards[b, i] + this.steps.discount * table[b, following[b, i]]
            if i == slots[-1] and not this.steps.bootstrap[b]:
                expected = np.full(1, rewards[b, i])
            error = 5 * expected.std() * math.sqrt(1 / 1000 + 1 / 2000) + 1e-5
            assert abs(samples[b, i].mean() - expected.mean()) < error
            assert abs(samples[b, i].std() - expected.std()) < 0.2 * expected.std() + 1e-5


def test_average_targets_equal_loops_per_quantile():
    this, steps = case("average"), random_steps()
    values = this.table(np.asarray(ops.noise_quantiles(4)))
    ends = after_last(values, steps.mask, steps.bootstrap)
    samples = np.asarray(this.rows.samples)
    for b, row in enumerate(steps.mask):
        slots = valid_slots(row)
        loops = [
            reference_critic.gae_returns(
                steps.rewards[b], values[b, :, q], row, steps.discount, LAMBDA, ends[b, q]
            )
            for q in range(4)
        ]
        expected = np.sort(np.stack(loops, axis=-1))[slots]
        np.testing.assert_allclose(np.sort(samples[b])[slots], expected, atol=2e-5)


def test_uncertain_states_are_discounted():
    this = case("integrated")
    grid, step = np.asarray(ops.noise_quantiles(1000), float), 1e-2
    slopes = (this.table(grid + step) - this.table(grid - step)) / (2 * step)
    sigma = np.abs(slopes).mean(axis=-1)[:, :-1]
    np.testing.assert_allclose(this.rows.weight, 1 / (1 + (sigma / 0.5) ** 2), rtol=2e-3)
    np.testing.assert_array_equal(case("average").rows.weight, 1.0)


@pytest.mark.parametrize("continues", [True, False])
def test_the_last_token_has_a_successor_only_where_it_bootstraps(continues):
    this, steps = case("all"), random_steps()
    steps = steps.replace(bootstrap=steps.bootstrap & continues)
    expected = np.zeros_like(steps.mask)
    for b, row in enumerate(steps.mask):
        slots = valid_slots(row)
        expected[b, slots if steps.bootstrap[b] else slots[:-1]] = 1
    rows = jax.jit(this.critic.targets)(jax.random.key(2), this.reading, steps, LAMBDA)
    np.testing.assert_array_equal(rows.has_successor, expected)
    assert (expected.sum() < steps.mask.sum()) and steps.bootstrap.any() == continues


# --- losses -------------------------------------------------------------------------------------


def expected_losses(this, params, states, noise, times):
    """Every loss [B, R] of other parameters and states, token by token, before weights."""
    flow, rows = this.config, this.rows
    live = this.scalar_fields(params, states)
    old = this.scalar_fields(this.params, this.states)
    following = successors(this.steps.mask)

    def after(b, i):
        return old(b, following[b, i])

    goals, rewards = np.asarray(rows.samples), np.asarray(this.steps.rewards)
    steps, solver = flow.num_steps, flow.solver
    ref = reference_critic
    out = {
        "anchor": ref.by_token(ref.anchor, (live,), (goals, noise, times)),
        "dcfm": ref.by_token(
            ref.distributional_cfm,
            (live, after),
            (rewards, noise, times),
            *(this.steps.discount, steps, solver, "keep"),
        ),
        "geometry": ref.by_token(
            ref.geometric_consistency,
            (live, old),
            (noise, times),
            *("map", steps, solver, flow.first_step),
        ),
    }
    grid = np.asarray(ops.noise_quantiles(flow.num_quantiles), float)
    for index in np.ndindex(rewards.shape):
        now, before = live(*index), old(*index)
        q = np.array([z + now(z, 0.0, 1.0) for z in grid])
        path = (lambda z, t, v=before: v(z, t, 0.0)), 0.0, 1.0, steps, solver, flow.first_step
        goal = np.array([ref.runge_kutta(path[0], z, *path[1:]) for z in grid])
        for name, x in ref.risk_losses(q, goal, 0.3, 0.3).items():
            out.setdefault(name, np.zeros(rewards.shape))[index] = x
    return out


def test_losses_equal_loops_over_tokens(monkeypatch):
    """Of parameters and states that have moved from the old ones, on rows with a gap."""
    this = case("all")
    params = tiny.randomised(this.params, seed=8, scale=0.3)
    states = random_states(9)
    rng, shape = np.random.default_rng(0), this.rows.samples.shape
    noise = rng.normal(size=shape).astype(np.float32)
    times = rng.uniform(size=shape).astype(np.float32)

    def draw(sampler, keys, shape):
        drawn = jnp.asarray(noise if sampler is jax.random.normal else times)
        assert drawn.shape == shape and keys.shape == shape[:1]
        return drawn

    monkeypatch.setattr(flow_losses, "draw", draw)

    @jax.jit
    def values(params, states, rows, old, keys):
        losses = this.critic.losses(params, states, rows, old, keys)
        return {name: (loss.per_token, loss.mask) for name, loss in losses.items()}

    found = values(params, states, this.rows, this.params, row_keys())
    assert successors(this.steps.mask)[1, 0] == 2  # there is a gap
    expected = expected_losses(this, params, states, noise, times)
    assert set(expected) == set(found)
    weight, mask = np.asarray(this.rows.weight), this.steps.mask
    assert np.ptp(weight) > 0.01
    for name, per_token in expected.items():
        per_token = per_token * (weight if name in ("anchor", "dcfm") else 1.0)
        x, counted = found[name]
        if name == "dcfm":
            np.testing.assert_array_equal(counted, this.rows.has_successor)
        else:
            assert counted is None
        np.testing.assert_allclose(x * mask, per_token * mask, rtol=1e-3, atol=1e-4, err_msg=name)
        assert (per_token * mask).sum() > 0, name


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
        ({"tail_targets": "none"}, "tail_targets is 'none'"),
        ({"uncertainty": "some"}, "uncertainty is 'some'"),
        ({"cvar_weight": -1.0}, "cvar_weight is -1.0"),
        ({"first_step": 0.0}, "first_step is 0.0"),
        ({"tail_alpha": 0.0}, "tail_alpha is 0.0"),
        ({"tail_beta": 1.5}, "tail_beta is 1.5"),
        ({"uncertainty_temperature": 0.0}, "uncertainty_temperature is 0.0"),
        ({"geometry": "straight"}, 'inference is "one_step".*geometry "map"'),
        ({"geometry_weight": 0.0}, 'inference is "one_step".*positive geometry_weight'),
        ({"tail_alpha": 0.2}, "tail_alpha is 0.2; no loss of the lower tail has a weight"),
        ({"tail_beta": 0.2, "cvar_weight": 1.0}, "tail_beta is 0.2; no loss of the upper tail"),
        (
            {"tail_targets": "returns", "tail_curvature_weight": 1.0},
            "tail_targets is 'returns'; no",
        ),
        ({"uncertainty_temperature": 0.5}, "uncertainty_temperature is 0.5; uncertainty is 'none'"),
        ({"dcfm_weight": 0.0, "dcfm_base": "shift"}, "dcfm_base is 'shift'; dcfm_weight is 0.0"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Flow(**options)
