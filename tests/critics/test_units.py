"""Critics that learn in asinh units: laws and returns in value units, targets against loops."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_critic
import tiny
from critic_states import DISCOUNT, random_states, random_steps, row_keys, successors
from reference_policy import after_last, valid_slots
from toy_parts import Plain
from wrong_parts import Given

from dfpo_jax import contracts, ops
from dfpo_jax.critics import Categorical, Critics, Flow, Iqn, Quantile
from dfpo_jax.critics.flow_inference import Reader
from dfpo_jax.critics.flow_losses import return_samples
from dfpo_jax.critics.units import AFFINE, ASINH

NUM, LAMBDA, WIDTH = 5, 0.8, 6
TINY = Flow(head=tiny.HEAD, num_samples=4, num_steps=2, solver="euler", num_quantiles=NUM)
SETTINGS = {
    "quantile": Quantile(NUM),
    "quantile, average": Quantile(NUM, target_mode="average"),
    "quantile, heads": Quantile(NUM, num_heads=3),
    "categorical": Categorical(11, support=4.0, num_quantiles=NUM),
    "categorical, atoms": Categorical(11, support=4.0, num_quantiles=NUM, projection="linear"),
    "iqn": Iqn(num_fractions=4, num_quantiles=NUM, num_cosines=3, hidden=4),
    "flow": TINY,
}


@functools.cache
def readings(name):
    """The critic in affine and in asinh units, and its reading of random states [B, R + 1, D]."""
    affine, asinh = (SETTINGS[name].build(units) for units in (AFFINE, ASINH))
    start = affine.init(jax.random.key(0), WIDTH)
    params = tiny.randomised(nn.unbox(start), seed=1, scale=0.5)
    return affine, asinh, affine.read(params, random_states())


# --- what is read ---------------------------------------------------------------------------------


def two_scales(levels):
    """Quantiles of a law that is fine near 0 and reaches 20 and -300: increasing, closed form."""
    return 0.5 * (levels - 0.4) + 20.0 * levels**9 - 300.0 * (1 - levels) ** 30


def test_quantiles_mapped_back_are_the_raw_quantiles_of_a_known_law():
    """Of a linear head whose outputs are h of the quantiles, and of a flow map of them."""
    known = two_scales((np.arange(NUM) + 0.5) / NUM)
    kernel, bias = np.zeros((3, NUM), np.float32), np.arcsinh(known).astype(np.float32)
    critic = Quantile(NUM).build(ASINH)
    reading = critic.read({"output": {"kernel": kernel, "bias": bias}}, np.ones((1, 2, 3)))
    np.testing.assert_allclose(critic.law(reading)[0, 1], known, rtol=1e-5)

    def velocity(noise, t, d):
        levels = jax.scipy.special.ndtr(noise)
        return jnp.arcsinh(two_scales(levels)) - noise

    found = Reader(units=ASINH).quantiles(velocity, (1, 1), NUM)[0, 0]
    np.testing.assert_allclose(found, known, rtol=1e-4)
    straight = Reader("ode", num_steps=3, units=ASINH).quantiles(tiny.constant([[2.0]]), (1, 1), 9)
    np.testing.assert_allclose(straight[0, 0], np.sinh(ops.noise_quantiles(9) + 2.0), rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in SETTINGS if "categorical" not in name])
def test_the_law_is_h_inverse_of_the_law_in_its_own_units(name):
    affine, asinh, reading = readings(name)
    law = np.asarray(asinh.law(reading))
    np.testing.assert_allclose(law, np.sinh(affine.law(reading)), rtol=1e-4, atol=1e-6)
    assert np.all(np.diff(law) >= 0) and law.std(axis=-1).max() > 0.1
    if asinh.heads:
        means = np.sinh(np.asarray(reading, float)).mean(axis=-1)
        np.testing.assert_allclose(asinh.heads(reading), means, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["categorical", "categorical, atoms"])
def test_a_histogram_keeps_its_mean_in_value_units(name):
    """Which the shares' means in z, mapped back, would miss where a share lies over a gap."""
    _, asinh, _ = readings(name)
    mass = np.random.default_rng(0).dirichlet(np.full(11, 0.3), 6).astype(np.float32)
    law = np.asarray(asinh.law(jnp.log(mass + 1e-30)[None])[0])
    assert law.shape == (6, NUM) and np.all(np.diff(law) >= 0)
    if name == "categorical":
        ends = np.linspace(-4.0, 4.0, 12)
        points = np.diff(np.cosh(ends)) / np.diff(ends)  # mean of sinh over each bin
    else:
        points = np.sinh(np.linspace(-4.0, 4.0, 11))
    np.testing.assert_allclose(law.mean(axis=-1), mass.astype(float) @ points, atol=1e-4)


# --- targets --------------------------------------------------------------------------------------


def expected_mixture(key, reading_law, steps):
    """Samples in x by stepping over the tokens, of bootstraps [B, R + 1, S] in x."""
    take = np.asarray(jax.random.uniform(key, (*steps.mask.shape, NUM))) < LAMBDA
    following = successors(steps.mask)
    after = np.take_along_axis(reading_law, following[..., None], axis=1)
    return reference_critic.lambda_mixture(
        take, steps.rewards, after, steps.mask, DISCOUNT, steps.bootstrap
    )


@pytest.mark.parametrize("name", ["quantile", "quantile, heads", "iqn", "categorical"])
def test_mixture_targets_equal_loops_that_go_through_the_inverse_map(name):
    """y = h(r + gamma h^-1(Z)), with rewards on every token; returns are the same before h."""
    _, asinh, reading = readings(name)
    steps, key = random_steps(), jax.random.key(3)
    goals = expected_mixture(key, np.asarray(asinh.law(reading), float), steps)
    found = np.asarray(asinh.returns(key, reading, steps, LAMBDA))
    rows = np.asarray(asinh.targets(key, reading, steps, LAMBDA))
    if name == "categorical":
        ends = jnp.linspace(-4.0, 4.0, 12)
        z = jnp.asarray(np.arcsinh(goals), jnp.float32)
        wanted = np.mean(ops.gaussian_histogram(z, ends, sigma=0.75 * 8.0 / 11), axis=-2)
    else:
        wanted = np.arcsinh(goals)
    for b, row in enumerate(steps.mask):
        slots = valid_slots(row)
        np.testing.assert_allclose(found[b, slots], goals[b, slots], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(rows[b, slots], wanted[b, slots], rtol=1e-4, atol=1e-4)


def test_averages_are_taken_in_value_units_and_mapped_afterwards():
    _, asinh, reading = readings("quantile, average")
    steps, key = random_steps(), jax.random.key(3)
    law = np.asarray(asinh.law(reading))
    rows, ends = (
        asinh.targets(key, reading, steps, LAMBDA),
        after_last(law, steps.mask, steps.bootstrap),
    )
    for b, q in np.ndindex(len(law), NUM):
        row, slots = steps.mask[b], valid_slots(steps.mask[b])
        goals = reference_critic.gae_returns(
            steps.rewards[b], law[b, :, q], row, DISCOUNT, LAMBDA, ends[b, q]
        )
        np.testing.assert_allclose(rows[b, slots, q], np.arcsinh(goals[slots]), atol=1e-4)


@pytest.mark.parametrize("mode", ["mixture", "average", "flowcritic"])
def test_samples_of_a_flow_are_the_affine_ones_of_fields_that_were_mapped_back(mode):
    """A field whose z is h of another's samples gives the same returns, bounded at h^-1."""
    steps, key = random_steps(), jax.random.key(5)
    centres = np.random.default_rng(2).normal(size=(*steps.mask.shape,)).astype(np.float32)

    def jump(to):
        return lambda z, t, d: to(3.0 * z + centres[..., None]) - z

    config = dataclasses.replace(TINY, target_mode=mode)
    same = [
        return_samples(config, key, jump(to), jump(to), steps, LAMBDA, units)[0]
        for to, units in ((lambda x: x, AFFINE), (jnp.arcsinh, ASINH))
    ]
    np.testing.assert_allclose(*same, rtol=1e-4, atol=1e-4)
    config = dataclasses.replace(config, value_bound=1.0)
    found = return_samples(config, key, jump(jnp.arcsinh), jump(jnp.arcsinh), steps, LAMBDA, ASINH)
    np.testing.assert_allclose(np.abs(found[0]).max(), np.sinh(1.0), rtol=1e-5)


# --- distributional flow matching -----------------------------------------------------------------


def test_flow_matching_leaves_out_tokens_between_which_something_happens():
    affine, asinh, reading = readings("flow")
    random = random_steps(discount=1.0)
    rewards = np.where(np.arange(random.mask.shape[1]) % 2 == 0, 0.0, random.rewards)
    key, quiet = jax.random.key(2), random.replace(rewards=rewards)
    every = np.asarray(affine.targets(key, reading, quiet, LAMBDA).has_successor)
    some = np.asarray(asinh.targets(key, reading, quiet, LAMBDA).has_successor)
    np.testing.assert_array_equal(some, every * (rewards == 0.0))
    assert 0 < some.sum() < every.sum()
    discounted = quiet.replace(discount=DISCOUNT)
    assert np.all(np.asarray(asinh.targets(key, reading, discounted, LAMBDA).has_successor) == 0)


def test_equal_states_with_nothing_between_them_have_no_flow_matching_loss():
    """In z too: the laws of both are one law."""
    critic, batch = TINY.build(ASINH), len(row_keys())
    params = tiny.randomised(nn.unbox(critic.init(jax.random.key(0), WIDTH)), seed=1)
    steps = random_steps(discount=1.0)
    steps = steps.replace(rewards=0 * steps.rewards)
    states = np.broadcast_to(random_states()[:1, :1], (batch, steps.mask.shape[1] + 1, WIDTH))
    rows = critic.targets(jax.random.key(2), critic.read(params, states), steps, LAMBDA)
    loss = critic.losses(params, states, rows, params, row_keys())["dcfm"]
    assert np.asarray(loss.mask).sum() > 0
    np.testing.assert_allclose(np.asarray(loss.per_token), 0.0, atol=1e-9)


# --- the contract, and what is refused ------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["quantile", "categorical", "iqn", pytest.param("flow", marks=pytest.mark.slow)],
)
def test_a_critic_in_asinh_units_keeps_the_contract(name):
    assert contracts.critic(Given(SETTINGS[name].build(ASINH))) is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": name}, f"units is 'asinh' and name '{name}', which gives no law")
        for name in ("none", "scalar", "ensemble", "robust", "scalar_flow")
    ]
    + [
        (
            {"name": "flow", "flow": dataclasses.replace(TINY, inference="euler")},
            "units is 'asinh' and name 'flow', which gives no law",
        ),
        (
            {"name": "toy_parts:Plain"},
            "units is 'asinh' and name 'toy_parts:Plain', which takes no units in its build",
        ),
    ],
)
def test_a_critic_that_gives_a_number_is_refused(options, said):
    with pytest.raises(ValueError, match=f"^{said}; .* must be 'affine'$"):
        Critics(units="asinh", **options)
    assert Critics(**options).units == "affine"


def test_units_are_those_that_there_are():
    with pytest.raises(ValueError, match="units is 'log'; it must be one of affine, asinh"):
        Critics(units="log")


def test_a_critic_of_ones_own_may_learn_in_them():
    critic = Critics("toy_parts:Mapped", units="asinh").build()
    assert critic.gives == {"value", "law"}
    reading = jnp.zeros((1, 2, 3)) + 2.0
    np.testing.assert_allclose(critic.law(reading), np.sinh(2.0), rtol=1e-6)
    assert Plain().build().law(reading) is reading
