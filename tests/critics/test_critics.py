"""The section `critic`: the choice, and what every critic has."""

import pytest

from dfpo_jax.critics import Critics


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "flux"}, "name is 'flux'.*none, scalar, .*nearest is flow"),
        ({"trunk": "mine"}, "trunk is 'mine'.*own, shared, detached"),
        ({"lambda_": 1.5}, "lambda_ is 1.5"),
        ({"warmup": -1}, "warmup is -1"),
        ({"loss_weight": -1.0}, "loss_weight is -1.0"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Critics(**options)


def test_no_critic_is_nothing():
    assert Critics("none").chosen.build() is None
