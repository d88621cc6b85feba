"""The entropy as a metric and a bonus."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from policy_batch import CONTEXT, random_batch

from dfpo_jax.objectives import Entropy


@pytest.mark.parametrize("coefficient", [0.0, 0.01])
def test_it_is_subtracted_with_its_coefficient_or_only_measured(coefficient):
    batch, live = random_batch()
    objective = Entropy(coefficient).build()

    def total(entropy):
        loss = objective.terms(live._replace(entropy=entropy), batch, CONTEXT, None)["entropy"]
        assert loss.weight == -coefficient
        return jnp.sum(loss.per_token)

    value, grad = jax.value_and_grad(total)(live.entropy)
    np.testing.assert_allclose(value, live.entropy.sum(), rtol=1e-5)
    # Without a coefficient nothing asks for the entropy's gradient.
    np.testing.assert_array_equal(grad, np.full(grad.shape, 1.0 if coefficient else 0.0))


def test_a_negative_coefficient_is_named():
    with pytest.raises(ValueError, match="coefficient is -0.1"):
        Entropy(-0.1)
