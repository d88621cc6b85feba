"""Prompt and response as one sequence."""

import numpy as np
from reference_policy import valid_slots
from tiny import ragged_rollout

from dfpo_jax.algorithms.trunk import join_sequence, response_features


def test_joined_sequences_keep_the_tokens_of_gaps():
    rollout = ragged_rollout()
    tokens, valid = join_sequence(rollout)
    np.testing.assert_array_equal(tokens[:, :4], rollout.prompt_tokens)
    np.testing.assert_array_equal(tokens[:, 4:], rollout.tokens)
    np.testing.assert_array_equal(valid[:, :4], rollout.prompt_mask)
    for row, response in zip(rollout.mask, np.asarray(valid)[:, 4:], strict=True):
        end = max([i + 1 for i in valid_slots(row)], default=0)
        assert response.tolist() == [1.0] * end + [0.0] * (5 - end)


def test_a_response_is_summed_up_by_its_valid_tokens():
    generator = np.random.default_rng(0)
    states = generator.normal(size=(3, 5, 2)).astype(np.float32)
    log_probs = -generator.random((3, 4)).astype(np.float32)
    mask = np.array([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]], np.float32)
    found = np.asarray(response_features(states, np.where(mask > 0, log_probs, np.nan), mask))
    assert found.shape == (3, 6) and found.dtype == np.float32
    for row, valid in ((0, [0, 1, 2, 3]), (1, [0, 2])):
        after = states[row, 1:][valid]
        own = log_probs[row, valid]
        expected = [*after[-1], *after.mean(axis=0), own.mean(), own.min()]
        np.testing.assert_allclose(found[row], expected, rtol=1e-5, atol=1e-6)
    assert not found[2].any()
