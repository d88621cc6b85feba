import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from dfpo_jax.models.config import PRESETS
from dfpo_jax.models.rope import apply_rope, rope_frequencies, rope_tables

TINY = dataclasses.replace(PRESETS["tiny"], head_dim=32, rope_theta=500.0)
LLAMA3 = dataclasses.replace(
    TINY, rope_type="llama3", rope_factor=8.0, rope_original_max_positions=64
)
YARN = dataclasses.replace(
    TINY,
    rope_type="yarn",
    rope_factor=4.0,
    rope_original_max_positions=256,
    rope_beta_fast=16.0,
    rope_attention_factor=1.25,
)


def test_rope_rotates_pairs_by_position():
    theta, width = 100.0, 4
    config = dataclasses.replace(TINY, rope_theta=theta, head_dim=width)
    x = np.random.default_rng(0).normal(size=(1, 3, 1, width)).astype(np.float32)
    positions = np.array([[0, 2, 5]])
    expected = np.zeros_like(x)
    for t, position in enumerate(positions[0]):
        for i in range(width // 2):
            angle = position * theta ** (-2 * i / width)
            a, b = x[0, t, 0, i], x[0, t, 0, i + width // 2]
            expected[0, t, 0, i] = a * np.cos(angle) - b * np.sin(angle)
            expected[0, t, 0, i + width // 2] = b * np.cos(angle) + a * np.sin(angle)
    found = apply_rope(x, *rope_tables(jnp.asarray(positions), config))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_linear_divides_every_frequency():
    config = dataclasses.replace(TINY, rope_type="linear", rope_factor=4.0)
    found, factor = rope_frequencies(config)
    np.testing.assert_allclose(found, rope_frequencies(TINY)[0] / 4.0, rtol=1e-6)
    assert factor == 1.0 and found.dtype == np.float32


def test_llama3_by_turns_over_the_original_context():
    plain, found = rope_frequencies(TINY)[0], rope_frequencies(LLAMA3)[0]
    kinds = []
    for f, got in zip(plain, found, strict=True):
        turns = 64 * f / (2 * math.pi)
        kept = 1.0 if turns > 4.0 else 0.0 if turns < 1.0 else (turns - 1.0) / 3.0
        kinds.append(kept if kept in (0.0, 1.0) else 0.5)
        assert got == pytest.approx((1 - kept) * f / 8.0 + kept * f, rel=1e-5)
    assert set(kinds) == {0.0, 0.5, 1.0}  # the case covers all three


@pytest.mark.parametrize("truncate", [True, False])
def test_yarn_by_pairs_and_its_factor(truncate):
    config = dataclasses.replace(YARN, rope_truncate=truncate)
    plain = rope_frequencies(TINY)[0]
    found, factor = rope_frequencies(config)
    low, high = (
        32 * math.log(256 / (turns * 2 * math.pi)) / (2 * math.log(500.0)) for turns in (16, 1)
    )
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    kinds = []
    for i, (f, got) in enumerate(zip(plain, found, strict=True)):
        slow = min(max((i - low) / (high - low), 0.0), 1.0)
        kinds.append(slow if slow in (0.0, 1.0) else 0.5)
        assert got == pytest.approx(slow * f / 4.0 + (1 - slow) * f, rel=1e-5)
    assert set(kinds) == {0.0, 0.5, 1.0}
    assert factor == 1.25
    cos, sin = rope_tables(jnp.asarray([[0, 3]]), config)
    np.testing.assert_allclose(cos[0, 1, 0], 1.25 * np.cos(3 * found), atol=1e-6)
    np.testing.assert_allclose(sin[0, 1, 0], 1.25 * np.sin(3 * found), atol=1e-6)


def test_a_yarn_ramp_without_width_is_finite():
    config = dataclasses.replace(YARN, rope_original_max_positions=1)
    assert np.all(np.isfinite(rope_frequencies(config)[0]))
