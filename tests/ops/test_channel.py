"""A noisy verifier and its inverse against plain numpy, the channel itself and the two identities
that say what a correction cannot do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfpo_jax import ops


@pytest.fixture(autouse=True)
def strict_dtypes():
    with jax.numpy_dtype_promotion("strict"):
        yield


RATES = [(0.0, 0.0), (0.2, 0.1), (0.05, 0.6), (0.9, 0.05)]
PER_ROW = (np.array([[0.0], [0.3], [0.45]], np.float32), np.array([[0.2], [0.0], [0.5]], "f4"))


def rates_of(case):
    return {"false_positive": case[0], "false_negative": case[1]}


@pytest.mark.parametrize("case", [*RATES, PER_ROW])
def test_the_inverse_matches_numpy_and_undoes_the_channel(variant, case):
    wrong, missed = case
    observed = np.random.default_rng(0).random((3, 50)).astype(np.float32)
    found = np.asarray(variant(ops.channel_inverse)(observed, **rates_of(case)))
    expected = np.minimum(np.maximum((observed - wrong) / (1.0 - wrong - missed), 0.0), 1.0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert found.dtype == np.float32 and found.min() >= 0.0 and found.max() <= 1.0
    right = np.linspace(0.0, 1.0, 150, dtype=np.float32).reshape(3, 50)
    through = right * (1 - missed) + (1 - right) * wrong
    undone = variant(ops.channel_inverse)(through.astype(np.float32), **rates_of(case))
    np.testing.assert_allclose(undone, right, atol=1e-5)


@pytest.mark.parametrize("kind", ops.CORRECTIONS)
@pytest.mark.parametrize("case", [*RATES, PER_ROW])
def test_corrected_rewards_match_numpy_and_their_mean_is_clean(variant, case, kind):
    wrong, missed = case
    informed = 1.0 - np.asarray(wrong, float) - missed
    fun = variant(ops.corrected_rewards, static_argnames="kind")
    rewards = np.random.default_rng(1).integers(0, 2, (3, 40)).astype(np.float32)
    found = np.asarray(fun(rewards, **rates_of(case), kind=kind))
    if kind == "backward":
        expected = (rewards - wrong) / informed
    else:
        expected = np.where(rewards == 1.0, missed, np.asarray(missed, float) - 1.0)
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), rtol=1e-5, atol=1e-5)
    one, zero = (
        np.asarray(fun(np.full((3, 1), x, np.float32), **rates_of(case), kind=kind), float)
        for x in (1.0, 0.0)
    )
    mean_right = (1 - np.asarray(missed, float)) * one + missed * zero
    mean_wrong = wrong * one + (1 - np.asarray(wrong, float)) * zero
    clean = (1.0, 0.0) if kind == "backward" else (0.0, -informed)
    np.testing.assert_allclose(mean_right, np.broadcast_to(clean[0], (3, 1)), atol=1e-5)
    np.testing.assert_allclose(mean_wrong, np.broadcast_to(clean[1], (3, 1)), atol=1e-5)


@pytest.mark.parametrize("kind", ops.CORRECTIONS)
def test_one_pair_of_rates_is_cancelled_by_whitening_and_two_are_not(kind):
    rewards = np.random.default_rng(2).integers(0, 2, (4, 8)).astype(np.float32)
    ones = np.ones_like(rewards)

    def whitened(wrong, missed):
        return ops.masked_whiten(
            ops.corrected_rewards(rewards, **rates_of((wrong, missed)), kind=kind), ones
        )

    plain = ops.masked_whiten(rewards, ones)
    np.testing.assert_allclose(whitened(0.2, 0.3), plain, rtol=1e-5, atol=1e-5)
    rows = np.array([[0.0], [0.1], [0.2], [0.4]], np.float32)
    assert np.abs(whitened(rows, rows) - plain).max() > 0.1


def test_gradients_pass_by_the_factor_of_the_channel_and_stop_at_the_clip():
    observed, rates = np.array([0.1, 0.5, 0.95], np.float32), rates_of((0.2, 0.3))
    slope = jax.grad(lambda p: jnp.sum(ops.channel_inverse(p, **rates)))(observed)
    np.testing.assert_allclose(slope, [0.0, 2.0, 0.0], rtol=1e-6)
    assert slope[0] == 0.0 and slope[2] == 0.0
    for kind, expected in (("backward", 2.0), ("forward", 1.0)):
        slope = jax.grad(lambda r, k=kind: jnp.sum(ops.corrected_rewards(r, **rates, kind=k)))
        np.testing.assert_allclose(slope(observed), expected, rtol=1e-6)


@pytest.mark.parametrize("function", [ops.channel_inverse, ops.corrected_rewards])
@pytest.mark.parametrize(
    ("case", "said"),
    [
        ((-0.1, 0.0), "false_positive is -0.1; allowed: in "),
        ((0.0, 1.1), "false_negative is 1.1; allowed: in "),
        ((float("nan"), 0.0), "false_positive is nan; allowed: in "),
        ((0.5, 0.5), r"false_positive \+ false_negative is .*1.0.*; allowed: below 1"),
        ((np.array([0.1, 0.7]), 0.4), r"false_positive \+ false_negative is .*; allowed: below 1"),
        ((np.array([0.1, 1.7]), 0.4), "false_positive is array.*; allowed: in "),
    ],
)
def test_rates_of_no_channel_are_refused(function, case, said):
    with pytest.raises(ValueError, match=said):
        function(np.zeros(2, np.float32), **rates_of(case))


def test_another_kind_and_rates_that_do_not_broadcast_are_refused():
    with pytest.raises(ValueError, match="kind is 'both'; allowed: backward, forward"):
        ops.corrected_rewards(np.zeros(2), false_positive=0.1, false_negative=0.1, kind="both")
    with pytest.raises(AssertionError):
        ops.channel_inverse(np.zeros(2), false_positive=np.zeros(3), false_negative=0.1)
