"""Warm starts: supervised steps before reinforcement learning, and what ends them."""

import logging

import jax
import numpy as np
import pytest
from tiny_run import tiny

from dfpo_jax.training.config import WarmStartConfig, parse_config
from dfpo_jax.training.run import build_run
from dfpo_jax.training.warm_start import first_policy


def policy(caplog, **settings):
    """The policy, and after how many steps its warm start ended."""
    config = tiny()
    config.warm_start.update(batch_size=16, **settings)
    config.warm_start.optimizer.learning_rate = 1e-2
    caplog.clear()
    with caplog.at_level(logging.INFO, "dfpo_jax.training.warm_start"):
        params = first_policy(build_run(parse_config(config)))
    return params, [int(record.args[0]) for record in caplog.records][-1]


def test_it_ends_where_its_recent_loss_is_low_enough(caplog):
    whole, steps = policy(caplog, steps=12)
    assert steps == 12
    endless, steps = policy(caplog, steps=12, stop_below=1e-9)
    assert steps == 12
    jax.tree.map(np.testing.assert_array_equal, whole, endless)
    ended, steps = policy(caplog, steps=12, stop_below=100.0)
    assert steps == 5  # as many as the mean is of
    short, _ = policy(caplog, steps=5)
    jax.tree.map(np.testing.assert_array_equal, ended, short)


def test_a_loss_that_ends_nothing_is_refused():
    with pytest.raises(ValueError, match="stop_below is 0.5.*steps is 0"):
        WarmStartConfig(stop_below=0.5)
    with pytest.raises(ValueError, match="stop_below is -1"):
        WarmStartConfig(steps=1, stop_below=-1.0)
