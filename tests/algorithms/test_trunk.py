"""Prompt and response as one sequence."""

import numpy as np
from reference_policy import valid_slots
from tiny import ragged_rollout

from dfpo_jax.algorithms.trunk import join_sequence


def test_joined_sequences_keep_the_tokens_of_gaps():
    rollout = ragged_rollout()
    tokens, valid = join_sequence(rollout)
    np.testing.assert_array_equal(tokens[:, :4], rollout.prompt_tokens)
    np.testing.assert_array_equal(tokens[:, 4:], rollout.tokens)
    np.testing.assert_array_equal(valid[:, :4], rollout.prompt_mask)
    for row, response in zip(rollout.mask, np.asarray(valid)[:, 4:], strict=True):
        end = max([i + 1 for i in valid_slots(row)], default=0)
        assert response.tolist() == [1.0] * end + [0.0] * (5 - end)
