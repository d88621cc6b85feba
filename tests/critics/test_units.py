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

NUM, LAMBDA, WIDTH, KEY = 5, 0.8, 6, jax.random.key(3)
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
def made(name):
    """A critic on random states, in one program: its reading, laws, returns and targets."""
    affine, asinh = (SETTINGS[name].build(units) for units in (AFFINE, ASINH))
    start = jax.jit(affine.init, static_argnums=1)(jax.random.key(0), WIDTH)
    params = tiny.randomised(nn.unbox(start), seed=1, scale=0.5)

    @jax.jit
    def run(params, states, steps):
        reading = affine.read(params, states)
        inputs = KEY, reading, steps, LAMBDA
        return {
            "reading": reading,
            "affine": affine.law(reading),
            "law": asinh.law(reading),
            "heads": asinh.heads(reading) if asinh.heads else None,
            "returns": asinh.returns(*inputs),
            "targets": asinh.targets(*inputs),
        }

    return jax.tree.map(np.asarray, run(params, random_states(), random_steps()))


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

    found = jax.jit(lambda: Reader(units=ASINH).quantiles(velocity, (1, 1), NUM))()[0, 0]
    np.testing.assert_allclose(found, known, rtol=1e-4)
    straight = Reader("ode", num_steps=3, units=ASINH)
    found = jax.jit(lambda: straight.quantiles(tiny.constant([[2.0]]), (1, 1), 9))()[0, 0]
    np.testing.assert_allclose(found, np.sinh(ops.noise_quantiles(9) + 2.0), rtol=1e-5)


@pytest.mark.parametrize("name", ["quantile", "quantile, average", "quantile, heads", "iqn"])
def test_the_law_is_h_inverse_of_the_law_in_its_own_units(name):
    this = made(name)
    law = this["law"]
    np.testing.assert_allclose(law, np.sinh(this["affine"]), rtol=1e-4, atol=1e-6)
    assert np.all(np.diff(law) >= 0) and law.std(axis=-1).max() > 0.1
    if this["heads"] is not None:
        means = np.sinh(this["reading"].astype(float)).mean(axis=-1)
        np.testing.assert_allclose(this["heads"], means, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["categorical", "categorical, atoms"])
def test_a_histogram_keeps_its_mean_in_value_units(name):
    """Which the shares' means in z, mapped back, would miss where a share lies over a gap."""
    asinh = SETTINGS[name].build(ASINH)
    mass = np.random.default_rng(0).dirichlet(np.full(11, 0.3), 6).astype(np.float32)
    law = np.asarray(jax.jit(asinh.law)(np.log(mass + 1e-30)[None])[0])
    assert law.shape == (6, NUM) and np.all(np.diff(law) >= 0)
    if name == "categorical":
        ends = np.linspace(-4.0, 4.0, 12)
        points = np.diff(np.cosh(ends)) / np.diff(ends)  # mean of sinh over each bin
    else:
        points = np.sinh(np.linspace(-4.0, 4.0, 11))
    np.testing.assert_allclose(law.mean(axis=-1), mass.astype(float) @ points, atol=1e-4)


# --- targets --------------------------------------------------------------------------------------


def expected_mixture(law, steps):
    """Samples in x by stepping over the tokens, of bootstraps [B, R + 1, S] in x."""
    take = np.asarray(jax.random.uniform(KEY, (*steps.mask.shape, NUM))) < LAMBDA
    following = successors(steps.mask)
    after = np.take_along_axis(law, following[..., None], axis=1)
    return reference_critic.lambda_mixture(
        take, steps.rewards, after, steps.mask, DISCOUNT, steps.bootstrap
    )


@pytest.mark.parametrize(
    "name",
    ["quantile", "quantile, heads", "iqn", pytest.param("categorical", marks=pytest.mark.slow)],
)
def test_mixture_targets_equal_loops_that_go_through_the_inverse_map(name):
    """y = h(r + gamma h^-1(Z)), with rewards on every token; returns are the same before h."""
    this, steps = made(name), random_steps()
    goals = expected_mixture(this["law"].astype(float), steps)
    found, rows = this["returns"], this["targets"]
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
    this, steps = made("quantile, average"), random_steps()
    law, rows = this["law"], this["targets"]
    ends = after_last(law, steps.mask, steps.bootstrap)
    for b, q in np.ndindex(len(law), NUM):
        row, slots = steps.mask[b], valid_slots(steps.mask[b])
        goals = reference_critic.gae_returns(
            steps.rewards[b], law[b, :, q], row, DISCOUNT, LAMBDA, ends[b, q]
        )
        np.testing.assert_allclose(rows[b, slots, q], np.arcsinh(goals[slots]), atol=1e-4)


@pytest.mark.parametrize("mode", ["mixture", "average", "flowcritic"])
def test_samples_of_a_flow_are_the_affine_ones_of_fields_that_were_mapped_back(mode):
    """A field whose z is h of another's samples gives the same returns, bounded at h^-1."""
    steps = random_steps()
    centres = np.random.default_rng(2).normal(size=(*steps.mask.shape,)).astype(np.float32)

    def jump(to):
        return lambda z, t, d: to(3.0 * z + centres[..., None]) - z

    config = dataclasses.replace(TINY, target_mode=mode)
    bounded = dataclasses.replace(config, value_bound=1.0)

    @jax.jit
    def run(steps):
        raw, z = jump(lambda x: x), jump(jnp.arcsinh)
        inputs = steps, LAMBDA
        return (
            return_samples(config, KEY, raw, raw, *inputs)[0],
            return_samples(config, KEY, z, z, *inputs, ASINH)[0],
            return_samples(bounded, KEY, z, z, *inputs, ASINH)[0],
        )

    raw, same, near = run(steps)
    np.testing.assert_allclose(raw, same, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.abs(near).max(), np.sinh(1.0), rtol=1e-5)


# --- distributional flow matching -----------------------------------------------------------------


@pytest.mark.slow
def test_flow_matching_leaves_out_tokens_between_which_something_happens():
    """And has no loss between equal states where nothing does: their laws are one, in z too."""
    affine, asinh = TINY.build(), TINY.build(ASINH)
    params = tiny.randomised(nn.unbox(affine.init(jax.random.key(0), WIDTH)), seed=1)
    steps = random_steps(discount=1.0)
    rewards = np.where(np.arange(steps.mask.shape[1]) % 2 == 0, 0.0, steps.rewards)
    states = np.broadcast_to(random_states()[:1, :1], random_states().shape)

    @jax.jit
    def run(params, states, steps, discounted):
        inputs = KEY, affine.read(params, states)
        rows = asinh.targets(*inputs, steps, LAMBDA)
        loss = asinh.losses(params, states, rows, params, row_keys())["dcfm"]
        every = affine.targets(*inputs, steps, LAMBDA).has_successor
        return every, loss, asinh.targets(*inputs, discounted, LAMBDA).has_successor

    quiet = steps.replace(rewards=rewards)
    every, loss, none = run(params, states, quiet, quiet.replace(discount=DISCOUNT))
    np.testing.assert_array_equal(loss.mask, every * (rewards == 0.0))
    assert 0 < loss.mask.sum() < every.sum() and not none.any()
    np.testing.assert_allclose(loss.per_token * loss.mask, 0.0, atol=1e-9)
    assert np.abs(loss.per_token * every).max() > 1e-3


# --- the contract, and what is refused ------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name != "quantile"))
        for name in ("quantile", "categorical", "iqn", "flow")
    ],
)
def test_a_critic_in_asinh_units_keeps_the_contract(name):
    assert contracts.critic(Given(SETTINGS[name].build(ASINH))) is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": name}, f"units is 'asinh' and name '{name}', which gives no law")
        for name in ("scalar", "ensemble", "robust", "scalar_flow")
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
    with pytest.raises(ValueError, match=f"^{said}; .* must be 'affine', as in .*'ppo'$"):
        Critics(units="asinh", **options)
    assert Critics(**options).units == "affine"


def test_where_there_is_no_critic_nothing_reads_the_units():
    assert Critics("none", units="asinh").build() is None


def test_units_are_those_that_there_are():
    with pytest.raises(ValueError, match="units is 'log'; it must be one of affine, asinh"):
        Critics(units="log")


def test_a_critic_of_ones_own_may_learn_in_them():
    critic = Critics("toy_parts:Mapped", units="asinh").build()
    assert critic.gives == {"value", "law"}
    reading = jnp.zeros((1, 2, 3)) + 2.0
    np.testing.assert_allclose(critic.law(reading), np.sinh(2.0), rtol=1e-6)
    assert Plain().build().law(reading) is reading
