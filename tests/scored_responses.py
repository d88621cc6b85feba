"""Responses for tests of the reward chain."""

import numpy as np

from dfpo_jax.rewards.interface import Scored
from dfpo_jax.tasks.base import Item

LIMIT = 10


def scored(rewards, bounds=(0.0, 1.0), step=0, round=0, lengths=None):
    """Responses with these verifier's rewards; their lengths are 0, 1, ..., LIMIT, 0, 1, ..."""
    clean = np.asarray(rewards, np.float32)
    size = len(clean)
    lengths = np.arange(size) % (LIMIT + 1) if lengths is None else np.asarray(lengths)
    items = [Item(f"p{i}", "a") for i in range(size)]
    return Scored(step, round, items, ["a"] * size, lengths, LIMIT, clean, bounds)


def apply(settings, rewards, **options):
    """The rewards after the link of these settings."""
    responses = scored(rewards, **options)
    return settings.build().apply(responses.clean, responses)
