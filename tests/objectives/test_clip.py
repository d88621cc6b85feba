"""The clipped surrogate against a loop over tokens."""

import math

import numpy as np
import pytest
import reference
from policy_batch import CONTEXT, random_batch

from dfpo_jax.objectives import Clip, Objectives


@pytest.mark.parametrize("dual", [0.0, 1.2])
def test_losses_equal_loops(dual, variant):
    batch, live = random_batch()
    objective = Clip(0.15, 0.3, dual).build()
    weights = {}

    def per_token(live):
        losses = objective.terms(live, batch, CONTEXT, None)
        weights.update({name: loss.weight for name, loss in losses.items()})
        return {name: loss.per_token for name, loss in losses.items()}

    # A jitted function takes no None.
    live = live._replace(hidden=np.zeros((8, 9, 2), np.float32))
    found = variant(per_token)(live)
    old, advantages = batch.old_log_probs, batch.advantages
    ratio = np.exp(live.log_probs - old)
    surrogate = reference.ppo_clip(live.log_probs, old, advantages, 0.15, 0.3, dual or None)
    outside = ((advantages > 0) & (ratio > 1.3)) | ((advantages < 0) & (ratio < 0.85))
    np.testing.assert_allclose(found["loss"], surrogate * batch.importance, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found["clip_fraction"], outside)
    assert weights == {"loss": 1.0, "clip_fraction": 0.0} and outside.any()


def test_nothing_is_clipped_at_the_old_policy():
    batch, live = random_batch()
    live = live._replace(log_probs=batch.old_log_probs)
    losses = Clip().build().terms(live, batch, CONTEXT, None)
    assert not np.any(losses["clip_fraction"].per_token)
    expected = -batch.advantages * batch.importance
    np.testing.assert_allclose(losses["loss"].per_token, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        (Clip, {"low": 1.5}, "low is 1.5"),
        (Clip, {"high": math.nan}, "high is nan"),
        (Clip, {"dual": 0.5}, "dual is 0.5; it must be 0"),
        (Objectives, {"name": "ppo"}, "name is 'ppo'; it must be one of clip"),
        (Objectives, {"name": "kl"}, "name is 'kl'; it must be one of clip"),  # it is added
        (Objectives, {"aggregation": "sum"}, "aggregation is 'sum'"),
        (Objectives, {"importance_cap": -1.0}, "importance_cap is -1.0"),
    ],
)
def test_bad_settings_are_named(settings, options, message):
    with pytest.raises(ValueError, match=message):
        settings(**options)
