"""Successors, values after the end and value units, against loops."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
import reference
from reference_policy import after_last, valid_slots

from dfpo_jax import ops


def test_successor_is_the_next_valid_state(variant):
    mask = reference.random_mask(np.random.default_rng(0), 12, 6)
    out = np.asarray(variant(ops.successor_index)(mask))
    for row, found in zip(mask, out, strict=True):
        slots = valid_slots(row)
        for i in slots:
            later = [j for j in slots if j > i]
            assert found[i] == (later[0] if later else i + 1)
    assert out.min() >= 1 and out.max() <= 6 and out.dtype == np.int32


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_normalised_rewards_give_the_normalised_return(discount, variant):
    rng = np.random.default_rng(1)
    mask = reference.random_mask(rng, 8, 5)
    bootstrap = np.arange(8) % 2 == 1
    rewards = (rng.normal(size=mask.shape) * mask).astype(np.float32)
    after = rng.normal(size=8)  # raw value after the last valid token of bootstrapped rows
    shift, scale = jnp.float32(0.4), jnp.float32(0.7)
    out = variant(ops.normalise_rewards, static_argnames="discount")(
        rewards, mask, bootstrap, shift, scale, discount=discount
    )
    np.testing.assert_array_equal(np.asarray(out)[mask == 0], 0.0)
    for b, row in enumerate(mask):
        raw = float(after[b]) if bootstrap[b] else 0.0
        unit = (raw - 0.4) / 0.7 if bootstrap[b] else 0.0
        for i in reversed(valid_slots(row)):
            raw = float(rewards[b, i]) + discount * raw
            unit = float(out[b, i]) + discount * unit
            assert math.isclose(unit, (raw - 0.4) / 0.7, abs_tol=1e-5)


@pytest.mark.parametrize("trailing", [(), (3,)])
def test_final_values_are_read_behind_the_last_token(trailing, variant):
    rng = np.random.default_rng(2)
    mask = reference.random_mask(rng, 8, 5)
    bootstrap = np.arange(8) % 2 == 1
    values = rng.normal(size=(8, 6, *trailing)).astype(np.float32)
    out = np.asarray(variant(ops.final_values)(values, mask, bootstrap))
    assert out.shape == (8, *trailing)
    np.testing.assert_array_equal(out, after_last(values, mask, bootstrap))
