"""Value Flows' and FlowCritic's settings of the flow critic, against loops and closed forms."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import reference_critic
import tiny
from critic_states import random_states, random_steps
from tiny import constant, widening

from dfpo_jax import ops
from dfpo_jax.advantages import Advantages
from dfpo_jax.algorithms import AlgorithmConfig
from dfpo_jax.algorithms.needs import check_parts
from dfpo_jax.critics import Critics, Flow, flow_losses
from dfpo_jax.critics.flow_inference import Reader, noise_grid
from dfpo_jax.critics.flow_losses import Fields, return_samples, uncertainty_weight
from dfpo_jax.types import Steps

BATCH, TIME, SAMPLES = 6, 4, 5
LAMBDA, DISCOUNT = 0.6, 0.9
EULER = Flow(
    head=tiny.HEAD,
    num_samples=4,
    num_steps=2,
    solver="euler",
    first_step=1.0,
    num_quantiles=5,
    inference="euler",
    geometry_weight=0.0,
)


def ragged(seed=1):
    """Steps with holes, and the centres of the laws at s_0 .. s_R and after every token."""
    rng = np.random.default_rng(seed)
    mask = reference.random_mask(rng, BATCH, TIME)
    bootstrap = np.arange(BATCH) % 2 == 1
    rewards = rng.normal(size=mask.shape).astype(np.float32)
    centres = rng.normal(size=(BATCH, TIME + 1)).astype(np.float32)
    after = np.asarray(np.take_along_axis(centres, np.asarray(ops.successor_index(mask)), axis=1))
    return Steps(rewards, mask, bootstrap, DISCOUNT), centres, after


def samples_of(config, steps, centres, after, key=0):
    config = dataclasses.replace(config, num_samples=SAMPLES)
    fields = constant(centres[:, :-1]), constant(after)
    found = return_samples(config, jax.random.key(key), *fields, steps, LAMBDA)
    return [None if x is None else np.asarray(x) for x in found]


# --- one noise for a sample and its interpolation -------------------------------------------------


def test_the_noise_of_a_mixture_sample_is_that_of_its_bootstrap():
    steps, centres, after = ragged()
    samples, noise = samples_of(Flow(noise="shared"), steps, centres, after)
    keys = jax.random.split(jax.random.key(0))
    drawn = np.asarray(jax.random.normal(keys[0], samples.shape))
    take = np.asarray(jax.random.uniform(keys[1], samples.shape)) < LAMBDA
    values = drawn + after[..., None]
    goals = reference_critic.lambda_mixture(
        take, steps.rewards, values, steps.mask, DISCOUNT, steps.bootstrap
    )
    np.testing.assert_allclose(samples, goals, atol=1e-5)
    everywhere = np.ones(BATCH, bool)
    starts = reference_critic.lambda_mixture(
        take, 0 * steps.rewards, drawn, steps.mask, 1.0, everywhere
    )
    np.testing.assert_allclose(noise, starts, atol=1e-6)
    # Of one token after another the same noise, also over the gap, and more than one in all.
    assert len(np.unique(noise[1])) > SAMPLES and np.any(noise[1, 0] == noise[1, -1])
    without, none = samples_of(Flow(), steps, centres, after)
    np.testing.assert_array_equal(without, samples)
    assert none is None


def test_the_noise_of_an_average_sample_is_its_quantile():
    steps, centres, after = ragged()
    config = Flow(noise="shared", target_mode="average")
    samples, noise = samples_of(config, steps, centres, after)
    np.testing.assert_array_equal(np.sort(noise), noise_grid((BATCH, TIME), SAMPLES))
    order = np.argsort(noise, axis=-1)
    assert np.any(order[1, 0] != order[1, 1])
    assert np.all(np.diff(np.take_along_axis(samples, order, axis=-1)) >= 0)


def linear(a, b, c, e):
    return lambda z, t, d: a + b * z + c * t * z + e * d


def test_anchor_and_flow_matching_share_one_noise_and_one_time(monkeypatch):
    config = dataclasses.replace(EULER, noise="shared", dcfm_base="shift", num_steps=3)
    config = dataclasses.replace(config, geometry_weight=1.0)
    rng = np.random.default_rng(5)
    goals, noise = rng.normal(size=(2, 2, 3, 4)).astype(np.float32)
    rewards = rng.normal(size=(2, 3)).astype(np.float32)
    fields = linear(0.3, -0.8, 0.5, 0.2), linear(0.1, 0.4, 0.3, 0.2), linear(-0.2, 1.6, -0.7, 0.1)
    ones, drawn, inner = np.ones((2, 3), np.float32), {}, flow_losses.draw

    def draw(sampler, keys, shape):
        found = inner(sampler, keys, shape)
        drawn.setdefault(sampler, []).append(np.asarray(found))
        return found

    monkeypatch.setattr(flow_losses, "draw", draw)
    steps, keys = (
        Steps(rewards, ones, ones[:, 0] > 0, DISCOUNT),
        jax.random.split(jax.random.key(0)),
    )
    losses = flow_losses.flow_losses(config, keys, Fields(*fields), goals, steps, ones, ones, noise)
    (start,), (times, again, later) = drawn[jax.random.normal], drawn[ops.stratified_times]
    np.testing.assert_array_equal(times, again)
    assert np.all(later != times) and np.all(start != noise)  # of the geometry alone
    ref = reference_critic
    anchor = ref.anchor(fields[0], goals, noise, times)
    options = DISCOUNT, 3, "euler", "shift"
    matching = ref.distributional_cfm(fields[0], fields[2], rewards, noise, times, *options)
    np.testing.assert_allclose(losses["anchor"].per_token, anchor, rtol=1e-4)
    np.testing.assert_allclose(losses["dcfm"].per_token, matching, rtol=1e-4)


def test_the_shared_noise_has_no_gradient_and_reaches_the_losses():
    config = dataclasses.replace(EULER, noise="shared")
    critic, states, steps = config.build(), random_states(), random_steps()
    params = tiny.randomised(critic.init(jax.random.key(0), states.shape[-1]), seed=1)
    reading = critic.read(params, states)
    rows = jax.jit(critic.targets)(jax.random.key(2), reading, steps, LAMBDA)
    assert rows.noise.shape == rows.samples.shape
    keys = jax.random.split(jax.random.key(3), len(states))

    def total(noise):
        losses = critic.losses(params, states, rows.replace(noise=noise), params, keys)
        return sum(jnp.sum(x.per_token * steps.mask) for x in losses.values())

    evaluated = jax.jit(jax.value_and_grad(total))
    (value, gradient), (other, _) = evaluated(rows.noise), evaluated(rows.noise + 1.0)
    assert value != other
    np.testing.assert_array_equal(gradient, 0.0)


# --- the value by one Euler step ------------------------------------------------------------------


def test_one_euler_step_reads_the_mean(variant):
    """Of the field of N(m, s^2) exactly; of any other field the mean of eps + v(eps, 0, 0)."""
    centre = np.random.default_rng(0).normal(size=(BATCH, TIME)).astype(np.float32)

    def gaussian(z, t, d):
        del d
        return reference_critic.gaussian_field(z, t, centre[..., None], 0.4)

    reader = Reader("euler", num_steps=40, solver="rk4", first_step=1.0)
    value = variant(lambda: reader.law(gaussian, (BATCH, TIME), 7))()
    np.testing.assert_allclose(value, centre[..., None], atol=1e-5)

    noise = np.random.default_rng(1).normal(size=(BATCH, TIME, 3)).astype(np.float32)
    samples = variant(lambda z: reader.samples(gaussian, z))(noise)
    np.testing.assert_allclose(samples, centre[..., None] + 0.4 * noise, atol=1e-4)

    bounded = dataclasses.replace(reader, clip=(-1.0, 0.5))
    value = bounded.law(lambda z, t, d: jnp.sin(3.0 * z) + t + d, (2, 3), 6)
    steps = [z + math.sin(3.0 * z) for z in np.asarray(ops.noise_quantiles(6), float)]
    expected = np.mean([min(max(z, -1.0), 0.5) for z in steps])
    np.testing.assert_allclose(value, np.full((2, 3, 1), expected), atol=1e-6)


def test_a_critic_read_by_one_euler_step_gives_no_law():
    critic, states = EULER.build(), random_states()
    params = tiny.randomised(critic.init(jax.random.key(0), states.shape[-1]), seed=1)
    reading = critic.read(params, states)
    assert critic.law(reading).shape == (*states.shape[:2], 1)
    np.testing.assert_array_equal(critic.law(reading), critic.law(reading))
    assert critic.gives == {"value"}
    integrated = dataclasses.replace(EULER, inference="ode").build()
    assert integrated.gives == {"value", "law"}
    # Targets are integrated in both.
    inputs = jax.random.key(2), reading, random_steps(), LAMBDA
    np.testing.assert_array_equal(critic.returns(*inputs), integrated.returns(*inputs))
    config = AlgorithmConfig(Critics("flow", flow=EULER), Advantages("rank"))
    with pytest.raises(ValueError, match="advantage 'rank' needs law; critic 'flow' gives value"):
        check_parts(config)


# --- FlowCritic -----------------------------------------------------------------------------------


def test_flowcritic_targets_equal_the_sum_of_temporal_differences():
    steps, centres, after = ragged()
    found, noise = samples_of(Flow(target_mode="flowcritic"), steps, centres, after)
    assert noise is None
    key = jax.random.split(jax.random.key(0))[0]
    drawn, ends = (
        np.asarray(jax.random.normal(k, found.shape)) for k in (key, jax.random.fold_in(key, 1))
    )
    values = drawn + centres[:, :-1, None]
    for b, row in enumerate(steps.mask):
        slots = np.flatnonzero(row)
        for s in range(SAMPLES):
            z = [values[b, i, s] for i in slots]
            if len(slots):
                end = ends[b, slots[-1], s] + after[b, slots[-1]]
                z.append(end if steps.bootstrap[b] else 0.0)
            zeta = [steps.rewards[b, i] + DISCOUNT * z[n + 1] - z[n] for n, i in enumerate(slots)]
            for n, i in enumerate(slots):
                goal = z[n] + sum(
                    (DISCOUNT * LAMBDA) ** k * delta for k, delta in enumerate(zeta[n:])
                )
                np.testing.assert_allclose(found[b, i, s], goal, atol=1e-5)


@pytest.mark.parametrize("lambda_", [0.0, 0.5, 0.95])
def test_the_spread_of_flowcritic_targets_shrinks_as_its_closed_form(lambda_):
    """Laws N(0, v), no reward, and a return that goes on behind the last token.

    Every law has the same mean, so that the mixture's variance is the mean of the variances.
    """
    time, samples, discount = 12, 4000, 0.97
    deviation = np.linspace(0.5, 1.5, time + 1)
    ones = np.ones((1, time), np.float32)
    steps = Steps(0 * ones, ones, np.ones(1, bool), discount)

    def field(widths):  # z_1 = width * eps, in one Euler step
        return lambda z, t, d: (jnp.asarray(widths, jnp.float32)[None, :, None] - 1.0) * z

    config = Flow(num_samples=samples, inference="ode", num_steps=1, solver="euler", first_step=1.0)
    fields, found = (field(deviation[:-1]), field(deviation[1:])), {}
    for mode in ("flowcritic", "mixture"):
        chosen = dataclasses.replace(config, target_mode=mode)
        draws, _ = return_samples(chosen, jax.random.key(0), *fields, steps, lambda_)
        found[mode] = np.asarray(draws)[0].var(axis=-1)
    for start in range(time):
        # Weight of the state l tokens on: (1 - lambda) lambda^(l - 1), all the rest on the last.
        left = np.arange(time - start)
        shares = (1.0 - lambda_) * lambda_**left
        shares[-1] = lambda_ ** left[-1]
        variances = (discount ** (left + 1) * deviation[start + 1 :]) ** 2
        mixed, averaged = np.sum(shares * variances), np.sum(shares**2 * variances)
        np.testing.assert_allclose(found["mixture"][start], mixed, rtol=0.15)
        np.testing.assert_allclose(found["flowcritic"][start], averaged, rtol=0.15)
    if lambda_ == 0.5:  # far from the end (1 - lambda) / (1 + lambda), times what widths add
        assert 0.25 < found["flowcritic"][0] / found["mixture"][0] < 0.4


def test_noisy_states_count_less_by_the_coefficient_of_variation():
    centre = np.array([[0.0, 0.05, 0.5, -2.0]], np.float32)
    config = dataclasses.replace(
        EULER, uncertainty="coefficient_of_variation", uncertainty_temperature=0.5
    )

    def field(z, t, d):  # z_1 = 0.75^2 eps + 1.75 / 2 centre, by two Euler steps of 1/2
        return -0.5 * z + jnp.asarray(centre)[..., None]

    weight = uncertainty_weight(config, field, np.ones((1, 4), np.float32))
    values = 0.75**2 * np.asarray(ops.noise_quantiles(4), float)
    mean, spread = 0.875 * centre.astype(float), values.std()
    expected = 1 / (1 + (spread / np.maximum(np.abs(mean), 0.1) / 0.5) ** 2)
    np.testing.assert_allclose(weight, expected, rtol=1e-5)
    np.testing.assert_allclose(weight[0, 0], weight[0, 1], rtol=1e-5)  # both below the floor
    assert weight[0, 1] < weight[0, 2] < weight[0, 3]
    plain = uncertainty_weight(EULER, widening(centre), np.ones((1, 4), np.float32))
    np.testing.assert_array_equal(plain, 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": "one"}, "noise is 'one'; it must be one of independent, shared"),
        ({"noise": "shared", "anchor_weight": 0.0}, "noise is 'shared'; anchor_weight is 0.0"),
        (
            {"noise": "shared", "target_mode": "flowcritic"},
            "noise is 'shared'; target_mode 'flowcritic' mixes noises",
        ),
        ({"target_mode": "flow"}, "target_mode is 'flow'.*mixture, average, flowcritic"),
        (
            {"geometry": "reflow", "geometry_weight": 0.0, "inference": "ode"},
            "geometry is 'reflow'; geometry_weight is 0.0, so it must be left at 'map'",
        ),
        (
            {"uncertainty": "emphasize", "anchor_weight": 0.0, "dcfm_weight": 0.0},
            "uncertainty is 'emphasize'; anchor_weight and dcfm_weight are 0.0",
        ),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Flow(**options)
