"""DFPO's critic losses: their values, the tokens they count, and their weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_critic
import tiny
from critic_cases import KEY
from critic_cases import dfpo_case as case
from reference_policy import state_tokens, valid_slots

from dfpo_jax import ops
from dfpo_jax.algorithms import flow_critic
from dfpo_jax.models import ValueFlow


def scalar_fields(params, conditions, states):
    """`field(b, i)` is the velocity of single numbers in the state `states[b, i]`, a token."""
    head = ValueFlow(tiny.HEAD)

    @jax.jit
    def velocity(condition, z, t, d):
        inputs = condition[None], jnp.reshape(z, (1, 1)), t, d
        return head.apply({"params": params}, *inputs, method="velocity")[0, 0]

    def field(b, i):
        return lambda z, t, d: float(velocity(conditions[states[b, i]], z, t, d))

    return field


def expected_losses(this, noise, times):
    """Every loss [B, R] of the moved parameters, token by token, before weights and masks."""
    flow, targets, params = this.config.flow, this.batch.critic, this.moved["critic"]["head"]
    states = state_tokens(this.rollout)
    live = scalar_fields(params, this.conditions(this.moved), states)
    frozen = scalar_fields(
        this.state.params["critic"]["head"], this.conditions(this.state.params), states
    )
    successors = this.successors()

    def after(b, i):
        return frozen(b, successors[b, i])

    goals, rewards = np.asarray(targets.samples), np.asarray(targets.rewards)
    steps, solver = flow.num_steps, flow.solver
    out = {
        "anchor": reference_critic.by_token(
            reference_critic.anchor, (live,), (goals, noise, times)
        ),
        "dcfm": reference_critic.by_token(
            reference_critic.distributional_cfm,
            (live, after),
            (rewards, noise, times),
            *(0.9, steps, solver, "keep"),
        ),
        "geometry": reference_critic.by_token(
            reference_critic.geometric_consistency,
            (live, frozen),
            (noise, times),
            *("map", steps, solver, flow.first_step),
        ),
    }
    grid = np.asarray(ops.noise_quantiles(flow.num_quantiles), float)
    for index in np.ndindex(rewards.shape):
        now, before = live(*index), frozen(*index)
        q = np.array([z + now(z, 0.0, 1.0) for z in grid])
        goal = np.array(
            [
                reference_critic.runge_kutta(
                    lambda z, t, v=before: v(z, t, 0.0), z, 0.0, 1.0, steps, solver, flow.first_step
                )
                for z in grid
            ]
        )
        for name, x in reference_critic.risk_losses(q, goal, 0.3, 0.3).items():
            out.setdefault(name, np.zeros(rewards.shape))[index] = x
    return out


def test_losses_equal_loops_over_tokens(monkeypatch):
    """Of parameters that have moved from the frozen ones, on rows with a gap."""
    this = case("own")
    rng = np.random.default_rng(0)
    shape = this.batch.critic.samples.shape
    noise = rng.normal(size=shape).astype(np.float32)
    times = rng.uniform(size=shape).astype(np.float32)

    def draw(sampler, key, shape):
        del key
        drawn = jnp.asarray(noise if sampler is jax.random.normal else times)
        assert drawn.shape == shape
        return drawn

    monkeypatch.setattr(flow_critic, "_draw", draw)
    # A function of its own, so that no other test finds this program.
    terms = jax.jit(lambda *inputs: this.algorithm.loss(*inputs))(
        this.moved, this.batch, this.context, KEY
    )
    targets, mask = this.batch.critic, this.rollout.mask
    assert this.successors()[1, 0] == 2  # there is a gap
    expected = expected_losses(this, noise, times)
    assert {f"critic/{name}" for name in expected} == {n for n in terms if "critic" in n}
    for name, per_token in expected.items():
        weighted = name in ("anchor", "dcfm")
        per_token = per_token * (np.asarray(targets.weight) if weighted else 1.0)
        counted = np.asarray(targets.has_successor) if name == "dcfm" else mask
        term = terms[f"critic/{name}"]
        np.testing.assert_allclose(
            term.total, (per_token * counted).sum(), rtol=1e-4, atol=1e-5, err_msg=name
        )
        assert float(term.count) == counted.sum()
        assert float(term.total) > 0


@pytest.mark.parametrize("name", ["own", "shared", "rank"])
def test_the_last_token_has_a_successor_only_where_it_bootstraps(name):
    this = case(name)
    expected = np.zeros_like(this.rollout.mask)
    for b, row in enumerate(np.asarray(this.batch.mask)):
        slots = valid_slots(row)
        continues = name == "own" and this.rollout.truncated[b]
        expected[b, slots if continues else slots[:-1]] = 1
    np.testing.assert_array_equal(this.batch.critic.has_successor, expected)
    if name == "own":
        terms, _ = this.run()
        assert float(terms["critic/dcfm"].count) == expected.sum()
        assert float(terms["critic/anchor"].count) == np.asarray(this.batch.mask).sum()


def test_the_uncertainty_weight_is_for_anchor_and_flow_matching_alone():
    this, terms = case("own"), []
    for factor in (1, 2):
        weight = np.full(this.rollout.mask.shape, factor, np.float32)
        critic = this.batch.critic.replace(weight=weight)
        terms.append(this.run(batch=this.batch.replace(critic=critic))[0])
    for name in terms[0]:
        factor = 2 if name in ("critic/anchor", "critic/dcfm") else 1
        np.testing.assert_allclose(terms[1][name].total, factor * terms[0][name].total, rtol=1e-6)


def test_every_weighted_loss_is_a_term():
    terms, _ = case("own").run()
    flow = tiny.FLOW
    for name, weight in {
        "anchor": flow.anchor_weight,
        "dcfm": flow.dcfm_weight,
        "geometry": flow.geometry_weight,
        "cvar": flow.cvar_weight,
        "upper_gain": flow.upper_gain_weight,
        "mean_shift": flow.mean_shift_weight,
        "tail_shape": flow.tail_shape_weight,
        "tail_curvature": flow.tail_curvature_weight,
    }.items():
        np.testing.assert_allclose(terms[f"critic/{name}"].weight, 0.7 * weight, rtol=1e-6)
