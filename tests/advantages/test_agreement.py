"""AsyPPO's advantage and bonus leave out tokens by how much a critic's heads differ."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from policy_batch import CONTEXT, random_batch

from dfpo_jax.advantages import View
from dfpo_jax.advantages.agreement import Agreement
from dfpo_jax.advantages.gae import Gae
from dfpo_jax.objectives import Entropy, Old
from dfpo_jax.types import Steps

RNG = np.random.default_rng(2)
MASK = np.ones((3, 5), np.float32)
MASK[0, 3:] = 0
HEADS = RNG.normal(size=(3, 6, 4)).astype(np.float32)
STEPS = Steps((RNG.normal(size=(3, 5)) * MASK).astype(np.float32), MASK, np.zeros(3, bool))


def spread_order():
    """Flat indices of valid tokens, from where the heads agree most."""
    spread = np.where(MASK > 0, HEADS[:, :-1].std(axis=-1), np.inf).reshape(-1)
    return np.argsort(spread)[: int(MASK.sum())]


def test_tokens_on_which_the_heads_agree_most_are_left_out():
    view = View(np.mean(HEADS, axis=-1, keepdims=True), None, HEADS)
    advantage = Agreement(lambda_=0.8, share=0.25).build()
    assert advantage.needs == {"value", "heads"}
    keep = np.asarray(advantage.keep(view, STEPS)).reshape(-1)
    left_out = spread_order()[:3]  # a quarter of 13
    assert set(np.flatnonzero((keep == 0) & (MASK.reshape(-1) > 0))) == set(left_out)
    np.testing.assert_array_equal(
        advantage.estimate(view, STEPS, None), Gae(0.8).build().estimate(view, STEPS, None)
    )


def test_the_bonus_leaves_out_those_on_which_they_differ_most():
    old = Old(None, None, None, MASK, {}, heads=HEADS[:, :-1])
    objective = Entropy(0.1, leave_out=0.25).build()
    kept = np.asarray(objective.prepare(old, None)).reshape(-1)
    assert set(np.flatnonzero((kept == 0) & (MASK.reshape(-1) > 0))) == set(spread_order()[-3:])
    batch, live = random_batch()
    rows = jnp.asarray(RNG.integers(0, 2, batch.mask.shape), jnp.float32)
    batch = batch.replace(own={"entropy": rows})

    def total(entropy):
        losses = objective.terms(live._replace(entropy=entropy), batch, CONTEXT, None)
        assert losses["entropy"].weight == 0.0 and losses["entropy_bonus"].weight == -0.1
        return sum(jnp.sum(loss.per_token) for loss in losses.values())

    np.testing.assert_array_equal(jax.grad(total)(live.entropy), rows)
    with pytest.raises(ValueError, match="leave_out is 0.2; coefficient is 0.0"):
        Entropy(0.0, leave_out=0.2)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="share is 1.5"):
        Agreement(share=1.5)
