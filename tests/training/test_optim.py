"""Learning-rate schedules and the optimizer around them."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfpo_jax.training.config import OptimizerConfig
from dfpo_jax.training.optim import make_optimizer, make_schedule

PEAK, TOTAL, RISE = 0.02, 20, 5


def expected_rate(schedule, step, rise, final):
    if step < rise:
        return PEAK * step / rise
    share = min((step - rise) / (TOTAL - rise), 1.0)
    if schedule == "constant":
        return PEAK
    if schedule == "linear":
        return PEAK * (1 - share * (1 - final))
    return PEAK * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * share)))


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("rise", [0, RISE])
def test_rates_equal_the_formulas(schedule, rise):
    config = OptimizerConfig(
        learning_rate=PEAK, warmup_steps=rise, schedule=schedule, final_fraction=0.25
    )
    rate = make_schedule(config, TOTAL)
    for step in (0, 1, RISE - 1, RISE, RISE + 1, 12, TOTAL - 1, TOTAL, TOTAL + 9):
        expected = expected_rate(schedule, step, rise, 0.25)
        np.testing.assert_allclose(rate(step), expected, rtol=1e-5, atol=1e-9)


def test_a_run_shorter_than_its_warm_up_only_rises():
    config = OptimizerConfig(learning_rate=PEAK, warmup_steps=10, schedule="cosine")
    rate = make_schedule(config, 4)
    np.testing.assert_allclose([rate(i) for i in range(4)], PEAK * np.arange(4) / 10, rtol=1e-5)


def adamw(params, grads, config):
    """A loop over steps and entries: parameters after each gradient [N, D]."""
    params, out = np.array(params, float), []
    m, v = np.zeros_like(params), np.zeros_like(params)
    rate = make_schedule(config, TOTAL)
    for n, grad in enumerate(np.asarray(grads, float)):
        norm = math.sqrt((grad**2).sum())
        if config.clip_norm and norm > config.clip_norm:
            grad = grad * config.clip_norm / norm
        m = config.b1 * m + (1 - config.b1) * grad
        v = config.b2 * v + (1 - config.b2) * grad**2
        step = m / (1 - config.b1 ** (n + 1))
        step = step / (np.sqrt(v / (1 - config.b2 ** (n + 1))) + config.eps)
        params = params - float(rate(n)) * (step + config.weight_decay * params)
        out.append(params)
    return np.stack(out)


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_updates_equal_a_loop(clip_norm):
    config = OptimizerConfig(
        learning_rate=PEAK,
        warmup_steps=2,
        schedule="linear",
        b1=0.8,
        b2=0.9,
        eps=1e-6,
        weight_decay=0.1,
        clip_norm=clip_norm,
    )
    rng = np.random.default_rng(0)
    start = rng.normal(size=6).astype(np.float32)
    grads = (rng.normal(size=(8, 6)) * np.geomspace(0.05, 50, 8)[:, None]).astype(np.float32)
    optimizer = make_optimizer(config, TOTAL)

    @jax.jit
    def run(params):
        moments, out = optimizer.init(params), []
        for grad in grads:
            updates, moments = optimizer.update(jnp.asarray(grad), moments, params)
            params = params + updates
            out.append(params)
        return jnp.stack(out)

    np.testing.assert_allclose(run(start), adamw(start, grads, config), rtol=1e-4, atol=1e-6)


def run(config, start, grads):
    """Parameters after each gradient, and the last state."""
    optimizer = make_optimizer(config, TOTAL)

    @jax.jit
    def loop(params, grads):
        def step(carry, grad):
            params, state = carry
            updates, state = optimizer.update(grad, state, params)
            params = jax.tree.map(jnp.add, params, updates)
            return (params, state), params

        (_, state), out = jax.lax.scan(step, (params, optimizer.init(params)), grads)
        return out, state

    return loop(start, grads)


def test_a_bfloat16_first_moment_stays_near_and_takes_half():
    rng = np.random.default_rng(1)
    start, grads = np.zeros(64, np.float32), rng.normal(0.3, 1.0, (12, 64)).astype(np.float32)
    config = OptimizerConfig(learning_rate=PEAK, clip_norm=0.0)
    exact, _ = run(config, start, grads)
    half, state = run(dataclasses.replace(config, moment_dtype="bfloat16"), start, grads)
    kinds = [x.dtype for x in jax.tree.leaves(state) if x.shape == (64,)]
    assert kinds == [jnp.bfloat16, jnp.float32]
    error = np.abs(np.asarray(half - exact)).max()
    assert 0 < error < 0.02 * np.abs(np.asarray(exact)).max()


def adafactor(params, grads, config):
    """A loop, for one matrix [N, M] with both sizes of at least 128 (decay 1 - t ** -0.8)."""
    params, out, rate = np.array(params, float), [], make_schedule(config, TOTAL)
    rows, columns = np.zeros(params.shape[0]), np.zeros(params.shape[1])
    for n, grad in enumerate(np.asarray(grads, float)):
        decay = 1.0 - (n + 1.0) ** -0.8
        squares = grad**2 + 1e-30
        rows = decay * rows + (1 - decay) * squares.mean(axis=1)
        columns = decay * columns + (1 - decay) * squares.mean(axis=0)
        step = grad / np.sqrt(np.outer(rows / rows.mean(), columns))
        step = step / max(1.0, np.sqrt((step**2).mean()))
        params = params - float(rate(n)) * (step + config.weight_decay * params)
        out.append(params)
    return np.stack(out)


def test_adafactor_equals_a_loop_and_keeps_rows_and_columns():
    config = OptimizerConfig(
        name="adafactor", learning_rate=PEAK, warmup_steps=2, weight_decay=0.1, clip_norm=0.0
    )
    rng = np.random.default_rng(2)
    start = rng.normal(size=(130, 140)).astype(np.float32)
    scales = np.geomspace(0.1, 10, 130)[:, None] * np.geomspace(1, 5, 140)
    grads = (rng.normal(size=(6, 130, 140)) * scales).astype(np.float32)
    out, state = run(config, start, grads)
    np.testing.assert_allclose(out, adafactor(start, grads, config), rtol=1e-4, atol=1e-5)
    assert sum(x.size for x in jax.tree.leaves(state)) < 130 + 140 + 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"name": "lion"}, "name is 'lion'.*adamw, adafactor"),
        ({"moment_dtype": "int8"}, "moment_dtype is 'int8'.*float32, bfloat16"),
        ({"schedule": "step"}, "schedule is 'step'.*constant, linear, cosine"),
        ({"final_fraction": 1.5}, "final_fraction is 1.5"),
        ({"b2": 1.5}, "b2 is 1.5"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"clip_norm": -1.0}, "clip_norm is -1.0"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**options)


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_parameters_in_bfloat16_have_float32_updates_and_moments(name):
    """A mean with b2 = 0.999 would stand still in bfloat16, which rounds 0.999 to 1."""
    config = OptimizerConfig(name=name, learning_rate=1e-2, b2=0.999, clip_norm=0.0)
    found = {}
    for dtype in ("float32", "bfloat16"):
        optimizer = make_optimizer(config, TOTAL)
        params = {"w": jnp.ones((2, 3), dtype)}
        state = optimizer.init(params)
        update = jax.jit(optimizer.update)
        for grad in [1.0] * 3 + [1 / 64] * 300:
            updates, state = update({"w": jnp.full((2, 3), grad, dtype)}, state, params)
        assert updates["w"].dtype == jnp.float32
        assert {x.dtype.name for x in jax.tree.leaves(state)} <= {"float32", "int32"}
        found[dtype] = updates["w"]
    np.testing.assert_allclose(found["bfloat16"], found["float32"], rtol=1e-5)
