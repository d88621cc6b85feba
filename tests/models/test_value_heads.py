import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfpo_jax.models.value_heads import (
    EnsembleHead,
    ImplicitQuantileHead,
    QuantileHead,
    ScalarHead,
)

FEATURES = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)


def parameters(head):
    """(initial, random) parameters, unboxed."""
    initial = nn.unbox(head.init(jax.random.key(0), FEATURES))
    rng = np.random.default_rng(1)
    return initial, jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), initial
    )


@pytest.mark.parametrize(("head", "shape"), [(ScalarHead(), (2, 3)), (QuantileHead(4), (2, 3, 4))])
def test_is_a_linear_map_that_starts_at_zero(variant, head, shape):
    initial, params = parameters(head)
    apply = variant(head.apply)
    out = apply(initial, FEATURES)
    assert out.shape == shape and np.all(np.asarray(out) == 0)
    layer = params["params"]["output"]
    expected = FEATURES @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
    out = apply(params, FEATURES)
    assert out.shape == shape
    np.testing.assert_allclose(out, expected.reshape(shape), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(apply(params, FEATURES[0, 0]), out[0, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("head", [ScalarHead(), QuantileHead(4)])
def test_computes_in_float32_whatever_the_features(head):
    _, params = parameters(head)
    low = jnp.asarray(FEATURES, jnp.bfloat16)
    out = head.apply(params, low)
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, head.apply(params, low.astype(jnp.float32)))


@pytest.mark.parametrize("head", [ScalarHead(), QuantileHead(4)])
def test_features_learn_nothing_from_a_new_head_but_the_head_learns(head):
    initial, _ = parameters(head)

    def loss(params, features):
        return jnp.sum((head.apply(params, features) - 1.0) ** 2)

    grads, features_grad = jax.grad(loss, argnums=(0, 1))(initial, FEATURES)
    assert all(np.all(np.abs(g) > 0) for g in jax.tree.leaves(grads))
    assert np.all(np.asarray(features_grad) == 0)


def test_number_of_quantiles_is_checked():
    with pytest.raises(ValueError, match="num_quantiles is 0; it must be at least 1"):
        QuantileHead(0).init(jax.random.key(0), FEATURES)


def test_heads_of_an_ensemble_are_linear_and_apart(variant):
    head = EnsembleHead(3, 2, scale=0.1)
    params = nn.unbox(head.init(jax.random.key(0), FEATURES))
    layer = jax.tree.map(np.asarray, params["params"]["output"])
    out = variant(head.apply)(params, FEATURES)
    expected = (FEATURES @ layer["kernel"] + layer["bias"]).reshape(2, 3, 3, 2)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    assert len(np.unique(layer["kernel"])) == layer["kernel"].size and not layer["bias"].any()
    assert 0.0 < layer["kernel"].std() < 0.1


def test_implicit_quantiles_at_shared_levels_are_those_at_each_ones_own(variant):
    head, levels = ImplicitQuantileHead(8, 4), np.array([0.1, 0.5, 0.9], np.float32)
    initial = nn.unbox(head.init(jax.random.key(0), FEATURES, levels))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), initial)
    shared = variant(head.apply)(params, FEATURES, levels)
    own = variant(head.apply)(params, FEATURES, np.tile(levels, (2, 3, 1)))
    assert shared.shape == (2, 3, 3) and np.all(np.std(shared, axis=-1) > 0)
    np.testing.assert_allclose(shared, own, rtol=1e-5, atol=1e-5)
    assert not np.any(head.apply(initial, FEATURES, levels))
    low = jnp.asarray(FEATURES, jnp.bfloat16)
    assert head.apply(params, low, levels).dtype == jnp.float32
