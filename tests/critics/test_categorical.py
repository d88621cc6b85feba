"""The categorical critic: how it is read, what its targets are, and what it learns."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dfpo_jax import ops
from dfpo_jax.critics.categorical import Categorical
from dfpo_jax.types import Steps


def test_shares_of_a_histogram_are_its_means():
    critic = Categorical(num_bins=4, support=2.0, num_quantiles=4).build()
    law = critic.law(jnp.log(jnp.array([[[0.5, 0.0, 0.25, 0.25], [0.125, 0.5, 0.0, 0.375]]])))
    # Quarters of mass .5 on [-2, -1], .25 on [0, 1] and .25 on [1, 2].
    np.testing.assert_allclose(law[0, 0], [-1.75, -1.25, 0.5, 1.5], atol=1e-6)
    # Half of the first is [-2, -1]; half of the third is what [-1, 0] has left, above -1/4.
    quarters = [(-1.5 - 0.875) / 2, -0.5, (-0.125 + 1 + 1 / 6) / 2, 1 + 2 / 3]
    np.testing.assert_allclose(law[0, 1], quarters, atol=1e-6)


def test_shares_of_atoms_keep_their_mean():
    critic = Categorical(num_bins=3, support=1.0, num_quantiles=4, projection="linear").build()
    law = critic.law(jnp.log(jnp.array([[[0.125, 0.5, 0.375], [0.0, 0.9, 0.1]]])))
    # Shares of a quarter: half of the first is the atom -1, half of the third the atom 1.
    np.testing.assert_allclose(law[0, 0], [-0.5, 0.0, 0.5, 1.0], atol=1e-6)
    np.testing.assert_allclose(law[0, 1], [0.0, 0.0, 0.0, 0.4], atol=1e-6)
    np.testing.assert_allclose(law.mean(axis=-1), [[0.25, 0.1]], atol=1e-6)


def test_the_law_of_a_histogram_has_its_mean_whatever_its_gaps():
    """Also where nearly all mass is on two far returns, as of responses right or wrong."""
    ends, share = jnp.linspace(-2.0, 2.0, 102), np.linspace(0.0, 1.0, 41)[:, None]
    low, high = (
        np.asarray(ops.gaussian_histogram(x, ends, sigma=0.03), float) for x in (-1.0, 1.0)
    )
    others = np.random.default_rng(0).dirichlet(np.ones(101), 4)
    mass = np.concatenate([(1 - share) * low + share * high, others]).astype(np.float32)
    law = Categorical().build().law(jnp.log(mass)[None])[0]
    means = mass.astype(float) @ ((np.arange(101) + 0.5) * 4 / 101 - 2)
    np.testing.assert_allclose(law.mean(axis=-1), means, atol=1e-5)
    np.testing.assert_allclose(means[:41], 2 * share[:, 0] - 1, atol=2 / 101)  # half a bin


@pytest.mark.filterwarnings("ignore:Rlax categorical_cross_entropy")
def test_one_step_targets_and_the_loss_of_atoms_equal_those_of_rlax():
    """Atoms of equal mass are their own shares, so that targets at lambda 0 are C51's."""
    rlax = pytest.importorskip("rlax")
    num, gamma = 9, 0.7
    critic = Categorical(num, support=1.5, num_quantiles=num, projection="linear").build()
    old = nn.unbox(critic.init(jax.random.key(0), 3))
    live = jax.tree.map(lambda x: x + jax.random.normal(jax.random.key(1), x.shape), old)
    states = jax.random.normal(jax.random.key(2), (2, 4, 3))
    rewards = jax.random.normal(jax.random.key(3), (2, 3))
    steps = Steps(rewards, jnp.ones((2, 3)), jnp.array([True, False]), gamma)
    rows = critic.targets(jax.random.key(4), critic.read(old, states), steps, 0.0)
    found = critic.losses(live, states, rows, old, None)["loss"].per_token
    atoms = jnp.linspace(-1.5, 1.5, num)
    logits = np.asarray(states @ live["output"]["kernel"]) + np.asarray(live["output"]["bias"])
    for b, i in np.ndindex(2, 3):
        ends = i == 2 and not steps.bootstrap[b]
        expected = rlax.categorical_td_learning(
            atoms, logits[b, i], rewards[b, i], 0.0 if ends else gamma, atoms, jnp.zeros(num)
        )
        np.testing.assert_allclose(found[b, i], expected, rtol=1e-4)


@pytest.mark.parametrize("projection", ["gaussian", "linear"])
def test_a_bimodal_return_is_learned(projection):
    """Returns of -1 and 1 from one state; at lambda 1 nothing is bootstrapped."""
    critic, rows = Categorical(num_bins=21, projection=projection).build(), 256
    params = nn.unbox(critic.init(jax.random.key(0), 3))
    states, rewards = jnp.ones((rows, 2, 3)), jnp.where(jnp.arange(rows) % 4 < 3, 1.0, -1.0)
    steps = Steps(rewards[:, None], jnp.ones((rows, 1)), jnp.zeros(rows, bool))
    optimizer = optax.adam(0.1)

    def update(carry, key):
        params, moments = carry
        targets = critic.targets(key, critic.read(params, states), steps, 1.0)

        def loss(p):
            return critic.losses(p, states, targets, params, key)["loss"].per_token.mean()

        changes, moments = optimizer.update(jax.grad(loss)(params), moments)
        return (optax.apply_updates(params, changes), moments), None

    keys = jax.random.split(jax.random.key(1), 200)
    (params, _), _ = jax.lax.scan(update, (params, optimizer.init(params)), keys)
    law = critic.law(critic.read(params, states))[0, 0]
    np.testing.assert_allclose(jnp.mean(law > 0), 0.75, atol=1 / 32)
    np.testing.assert_allclose(law[law > 0].mean(), 1.0, atol=0.1)
    np.testing.assert_allclose(law[law < 0].mean(), -1.0, atol=0.1)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("num_bins", 1, "num_bins is 1; it must lie in [2, inf]"),
        ("num_quantiles", 2, "num_quantiles is 2"),
        ("projection", "none", "projection is 'none'; it must be one of gaussian, linear"),
        ("support", 0.0, "support is 0.0; it must be finite and above 0"),
        ("smoothing", float("inf"), "smoothing is inf; it must be finite and above 0"),
    ],
)
def test_a_value_outside_its_range_is_named(field, value, said):
    with pytest.raises(ValueError) as error:
        Categorical(**{field: value})
    assert str(error.value).startswith(said)


def test_a_smoothing_that_atoms_do_not_read_is_refused():
    with pytest.raises(ValueError, match="smoothing is 0.5; projection is 'linear', so it must be"):
        Categorical(projection="linear", smoothing=0.5)
