"""What stands beside the policy's loss: imitation of good responses, and an expert's guide."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from policy_batch import CONTEXT, random_batch
from tiny import ragged_rollout

from dfpo_jax import ops
from dfpo_jax.objectives import Expert, Objectives, Old, Positive

ROLLOUT = ragged_rollout()
MASK = ROLLOUT.mask


def case(settings, own, rewards=ROLLOUT.rewards, expert=None):
    batch, live = random_batch()
    old = Old(None, batch.old_log_probs, None, MASK, {}, expert_log_probs=expert)
    objective = settings.build()
    rows = objective.prepare(old, ROLLOUT.replace(rewards=rewards))
    return objective, live, batch.replace(own={own: rows})


def test_the_imitation_is_the_mean_over_the_tokens_of_good_responses():
    objective, live, batch = case(Positive(0.1, above=0.4), "positive")
    good = ROLLOUT.rewards > 0.4
    assert 0 < good.sum() < len(good)

    def parts(rows):
        """Sum and count of the loss on some of the rows, as a micro-batch has them."""
        piece = jax.tree.map(lambda x: x[rows], (live.log_probs, batch.mask, batch.own))
        other = batch.replace(mask=piece[1], own=piece[2])
        loss = objective.terms(live._replace(log_probs=piece[0]), other, CONTEXT, None)["positive"]
        assert (loss.weight, loss.aggregation) == (0.1, "token_mean")
        weights, count = ops.aggregate_weights(piece[1], loss.aggregation)
        return np.array([jnp.sum(loss.per_token * weights), count])

    expected = -np.mean([live.log_probs[b, i] for b, i in np.argwhere(MASK * good[:, None] > 0)])
    total, count = parts(slice(None))
    assert total / count == pytest.approx(expected, rel=1e-5)
    for cut in (1, 3, 6):  # however the batch is split
        total, count = parts(slice(cut)) + parts(slice(cut, None))
        assert total / count == pytest.approx(expected, rel=1e-5)


def test_without_a_good_response_there_is_nothing_to_imitate():
    rewards = np.zeros_like(ROLLOUT.rewards)
    objective, live, batch = case(Positive(0.1), "positive", rewards)
    assert not np.any(objective.terms(live, batch, CONTEXT, None)["positive"].per_token)


def test_the_expert_guides_all_responses_by_its_tokens_at_their_places():
    expert = -np.random.default_rng(1).uniform(0.0, 3.0, MASK.shape).astype(np.float32)
    expert[:, 3:] = 0  # behind its end
    objective, live, batch = case(Expert(0.1, slope=0.3, above=0.6), "expert", expert=expert)
    loss = objective.terms(live, batch, CONTEXT, None)["expert"]
    assert (loss.weight, loss.aggregation, objective.needs) == (0.1, None, {"expert"})
    for b, i in np.ndindex(*MASK.shape):
        sign = 1 if ROLLOUT.rewards[b] > 0.6 else -1
        x = -sign * (live.log_probs[b, i] - expert[b, i])
        expected = abs(batch.advantages[b, i]) * (x if x > 0 else 0.3 * x)
        np.testing.assert_allclose(loss.per_token[b, i], expected, rtol=1e-4, atol=1e-6)
    assert 0 < np.mean(ROLLOUT.rewards > 0.6) < 1


def test_both_are_off_by_default_and_need_nothing():
    for part in (Positive(), Expert()):
        objective = part.build()
        assert objective.terms(None, None, None, None) == {}
        assert (objective.needs, objective.prepare) == (frozenset(), None)
    assert {"positive", "expert"} <= set(Objectives().build())


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        (Positive, {"weight": -0.1}, "weight is -0.1"),
        (Positive, {"above": 0.9}, "above is 0.9; weight is 0.0"),
        (Positive, {"weight": 0.1, "above": float("nan")}, "above is nan"),
        (Expert, {"weight": -0.1}, "weight is -0.1"),
        (Expert, {"slope": 0.3}, "slope is 0.3; weight is 0.0"),
        (Expert, {"weight": 0.1, "slope": 0.0}, "slope is 0.0; it must be above 0"),
        (Expert, {"weight": 0.1, "slope": 1.5}, "slope is 1.5; it must be above 0 and at most 1"),
    ],
)
def test_bad_settings_are_named(settings, options, message):
    with pytest.raises(ValueError, match=message):
        settings(**options)
