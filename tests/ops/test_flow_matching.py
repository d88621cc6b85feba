"""Flow-matching losses against plain loops, closed-form optima and the gradient contract."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_critic as reference

from dfpo_jax import ops

LIVE = (0.3, -0.8, 0.5, -0.4)
FROZEN = (-0.2, 0.6, -0.7, 0.9)


def linear(theta):
    """velocity(z, t, d) = a + b z + c t z + e d, for arrays and for numbers."""
    a, b, c, e = theta
    return lambda z, t, d: a + b * z + c * t * z + e * d


def example(seed=0, batch=2, time=3, samples=4):
    rng = np.random.default_rng(seed)
    targets, noise = rng.normal(size=(2, batch, time, samples)).astype(np.float32)
    rewards = rng.normal(size=(batch, time)).astype(np.float32)
    times = (np.arange(samples) + rng.uniform(size=targets.shape)).astype(np.float32) / samples
    return tuple(jnp.asarray(x) for x in (targets, rewards, noise, times))


# --- stratified times ----------------------------------------------------------------------------


def test_stratified_times_have_one_time_per_stratum():
    key = jax.random.key(0, impl="rbg")  # compiles faster than the default
    times = jax.jit(lambda k: ops.stratified_times(k, (50, 3, 8)))(key)
    strata = np.floor(np.asarray(times) * 8)
    np.testing.assert_array_equal(strata, np.broadcast_to(np.arange(8), (50, 3, 8)))
    within = np.asarray(times) * 8 - strata
    assert abs(within.mean() - 0.5) < 5 / np.sqrt(12 * within.size)
    np.testing.assert_allclose(within.var(), 1 / 12, rtol=0.15)
    assert abs(np.corrcoef(within[..., 0].ravel(), within[..., 1].ravel())[0, 1]) < 0.4
    with pytest.raises(ValueError, match="shape is"):
        ops.stratified_times(jax.random.key(0), ())


# --- values against loops ------------------------------------------------------------------------


def test_anchor_matches_loop(variant):
    targets, _, noise, times = example()
    got = variant(lambda *a: ops.anchor_loss(linear(LIVE), *a))(targets, noise, times)
    want = reference.anchor(linear(LIVE), *(np.asarray(x) for x in (targets, noise, times)))
    assert got.shape == (2, 3)
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("base", ["keep", "shift"])
@pytest.mark.parametrize(
    "discount,solver,clip",
    [(1.0, "midpoint", None), (0.7, "heun", None), (0.7, "midpoint", (-0.4, 0.3))],
)
def test_distributional_cfm_matches_loop(base, discount, solver, clip, variant):
    _, *arrays = example(seed=1)
    options = dict(discount=discount, num_steps=3, solver=solver, base=base, clip=clip)
    got = variant(
        lambda *a: ops.distributional_cfm_loss(linear(LIVE), linear(FROZEN), *a, **options)
    )(*arrays)
    inputs = linear(LIVE), linear(FROZEN), *(np.asarray(x) for x in arrays), discount, 3
    want = reference.distributional_cfm(*inputs, solver, base, clip)
    assert got.shape == (2, 3)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    if clip is not None:
        free = reference.distributional_cfm(*inputs, solver, base)
        assert np.all(np.abs(want - free) > 1e-3)


@pytest.mark.parametrize("mode", ["map", "reflow", "straight"])
@pytest.mark.parametrize("first_step,clip", [(1.0, None), (2.0, None), (0.5, (-0.4, 0.3))], ids=str)
def test_geometric_consistency_matches_loop(mode, first_step, clip, variant):
    _, _, noise, times = example(seed=2)
    options = dict(mode=mode, num_steps=3, solver="midpoint", first_step=first_step, clip=clip)
    got = variant(
        lambda *a: ops.geometric_consistency_loss(linear(LIVE), linear(FROZEN), *a, **options)
    )(noise, times)
    inputs = linear(LIVE), linear(FROZEN), np.asarray(noise), np.asarray(times), mode, 3
    want = reference.geometric_consistency(*inputs, "midpoint", first_step, clip)
    assert got.shape == (2, 3)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    plain = reference.geometric_consistency(*inputs, "midpoint")
    assert np.all(np.abs(want / plain - 1) > 1e-3) == ((first_step, clip) != (1.0, None))


# --- gradient contract ---------------------------------------------------------------------------


def check_contract(loss, live, *stopped):
    """Gradient to `live` is not 0, to every stopped argument exactly 0; all are finite."""
    every = tuple(range(1 + len(stopped)))
    gradients = jax.jit(jax.grad(lambda *a: loss(*a).sum(), argnums=every))(live, *stopped)
    assert all(np.all(np.isfinite(g)) for g in gradients)
    assert np.abs(gradients[0]).max() > 1e-3
    for gradient in gradients[1:]:
        np.testing.assert_array_equal(gradient, np.zeros(gradient.shape))


def test_anchor_gradient_contract():
    targets, _, noise, times = example()
    check_contract(
        lambda p, y, eps, t: ops.anchor_loss(linear(p), y, eps, t),
        jnp.array(LIVE),
        targets,
        noise,
        times,
    )


@pytest.mark.parametrize("base", ["keep", "shift"])
def test_distributional_cfm_gradient_contract(base):
    _, rewards, noise, times = example()
    check_contract(
        lambda p, f, *a: ops.distributional_cfm_loss(
            linear(p), linear(f), *a, discount=0.9, base=base
        ),
        jnp.array(LIVE),
        jnp.array(FROZEN),
        rewards,
        noise,
        times,
    )


@pytest.mark.parametrize("mode", ["map", "reflow", "straight"])
def test_geometric_consistency_gradient_contract(mode):
    _, _, noise, times = example()
    check_contract(
        lambda p, f, *a: ops.geometric_consistency_loss(linear(p), linear(f), *a, mode=mode),
        jnp.array(LIVE),
        jnp.array(FROZEN),
        noise,
        times,
    )


def test_straight_sends_no_gradient_through_the_later_velocity():
    """theta_2 multiplies t z, which is 0 at t = 0: it acts through the later velocity alone."""
    _, _, noise, times = example()

    @jax.jit
    @jax.value_and_grad
    def loss(theta):
        return ops.geometric_consistency_loss(
            linear(theta), linear(FROZEN), noise, times, mode="straight"
        ).sum()

    value, gradient = loss(jnp.array(LIVE))
    assert abs(float(value - loss(jnp.array([0.3, -0.8, 0.0, -0.4]))[0])) > 1e-3
    assert gradient[2] == 0.0 and gradient[0] != 0.0 and gradient[1] != 0.0


# --- optima known in closed form -----------------------------------------------------------------

DEGREE = 7


def basis_velocity(theta):
    """Polynomials p(t) + q(t) z: linear in theta, so losses are quadratic in it."""

    def velocity(z, t, d):
        return jnp.polyval(theta[0], t) + jnp.polyval(theta[1], t) * z

    return velocity


def solve_quadratic(loss, size, *arrays):
    """Exact minimiser of loss(theta, *arrays), quadratic in theta [size] (float64)."""

    def slope(theta, *args):
        return jax.grad(lambda x: loss(x, *args).mean())(theta)

    points = jnp.eye(size + 1, size, -1, dtype=jnp.float64)  # 0 and the unit vectors
    axes = (0,) + (None,) * len(arrays)
    slopes = np.asarray(jax.jit(jax.vmap(slope, axes))(points, *arrays))
    return np.linalg.solve(slopes[1:] - slopes[0], -slopes[0])


def minimiser(loss, *arrays):
    """The velocity of the basis that minimises loss(velocity, *arrays)."""

    def flat(theta, *args):
        return loss(basis_velocity(theta.reshape(2, -1)), *args)

    return basis_velocity(solve_quadratic(flat, 2 * (DEGREE + 1), *arrays).reshape(2, -1))


def flow(velocity, z0):
    """z at t = 1 in many steps."""
    return ops.integrate(lambda z, t: velocity(z, t, 0.0), z0, num_steps=32, solver="rk4")


def product_grid(*axes):
    """All combinations of the axes' points, each result [1, 1, S]."""
    return tuple(jnp.asarray(x.reshape(1, 1, -1)) for x in np.meshgrid(*axes))


NORMAL_GRID = np.array([reference.NORMAL.inv_cdf((j + 0.5) / 8) for j in range(8)])
NORMAL_GRID /= NORMAL_GRID.std()  # regressions between Gaussians see nothing but two moments
TIME_GRID = (np.arange(100) + 0.5) / 100


PROBE = np.linspace(-1.5, 1.5, 7)


def test_anchor_minimiser_is_the_optimal_field():
    """Independent noise and Gaussian targets: the minimiser transports N(0, 1) to their law."""
    with jax.enable_x64(True):
        mean, std = 0.6, 0.7
        grid = product_grid(mean + std * NORMAL_GRID, NORMAL_GRID, TIME_GRID)
        best = minimiser(ops.anchor_loss, *grid)
        z1 = flow(best, jnp.asarray(PROBE))
        for t in (0.1, 0.5, 0.9):
            at = jnp.full(7, t)
            want = reference.gaussian_field(PROBE, t, mean, std)
            np.testing.assert_allclose(best(jnp.asarray(PROBE), at, 0 * at), want, atol=0.01)
    np.testing.assert_allclose(z1, mean + std * PROBE, atol=0.01)


@pytest.mark.parametrize("base,discount", [("keep", 1.0), ("keep", 0.8), ("shift", 0.8)])
def test_distributional_cfm_minimiser_between_two_gaussian_states(base, discount):
    """Successor N(m, s^2), reward r: the true law is N(r + gamma m, (gamma s)^2).

    The frozen field is the successor's exact one. The minimiser's flow from N(0, 1) ends at the
    true law for "keep"; for "shift" only its flow from N(r, gamma^2) does.
    """
    mean, std, reward = -0.4, 0.6, 1.5
    seen = []

    def record(z, t, d):
        seen.append(z)
        return jnp.zeros_like(z)

    def following(z, t, d):
        return reference.gaussian_field(z, t, mean, std)

    def loss(velocity, noise, times):
        rewards = jnp.full((1, 1), reward)
        options = dict(discount=discount, num_steps=8, solver="rk4", base=base)
        return ops.distributional_cfm_loss(velocity, following, rewards, noise, times, **options)

    with jax.enable_x64(True):
        noise, times = product_grid(NORMAL_GRID, TIME_GRID)
        loss(record, noise, 0 * times)
        start = np.asarray(seen[0])
        best = minimiser(loss, noise, times)
        assert float(loss(best, noise, times)[0, 0]) < 1e-3  # one path through every point
        from_noise = flow(best, jnp.asarray(PROBE))
        from_shifted = flow(best, jnp.asarray(reward + discount * PROBE))
        want = np.asarray(reward + discount * noise)
    truth = reward + discount * (mean + std * PROBE)
    if base == "keep":
        np.testing.assert_allclose(start, noise, rtol=1e-12)
        np.testing.assert_allclose(from_noise, truth, atol=0.01)
    else:
        np.testing.assert_allclose(start, want, rtol=1e-12)
        np.testing.assert_allclose(from_shifted, truth, atol=0.01)
        assert np.abs(np.asarray(from_noise) - truth).min() > 0.2


def test_geometry_minimisers_give_the_displacement():
    """Exact frozen field to N(m, s^2): the best affine one-step answer is m + (s - 1) eps."""
    mean, std = 0.6, 0.5

    def frozen(z, t, d):
        return reference.gaussian_field(z, t, mean, std)

    def loss(velocity, noise, times, mode):
        options = dict(mode=mode, num_steps=8, solver="rk4")
        return ops.geometric_consistency_loss(velocity, frozen, noise, times, **options)

    def first_step(theta):
        """Free at t = 0, the exact field later."""

        def velocity(z, t, d):
            return jnp.where(t == 0.0, theta[0] + theta[1] * z, frozen(z, t, d))

        return velocity

    with jax.enable_x64(True):
        noise, times = product_grid(NORMAL_GRID, TIME_GRID)
        for mode in ("map", "straight"):
            best = solve_quadratic(
                lambda p, *a, m=mode: loss(first_step(p), *a, m), 2, noise, times
            )
            np.testing.assert_allclose(best, [mean, std - 1.0], atol=1e-4)
        best = minimiser(lambda v, *a: loss(v, *a, "reflow"), noise, times)
        probe = jnp.asarray(PROBE)
        one_step = probe + best(probe, 0 * probe, 0 * probe)
    np.testing.assert_allclose(one_step, mean + std * PROBE, atol=0.01)  # straight after reflow


# --- uncertainty weights -------------------------------------------------------------------------


def test_uncertainty_weights(variant):
    sigma = jnp.array([[0.0, 0.5, 2.0, 1e6]])
    weights = {
        mode: np.asarray(
            variant(lambda s, m=mode: ops.uncertainty_weights(s, mode=m, temperature=2.0))(sigma)
        )[0]
        for mode in ("none", "emphasize", "discount")
    }
    np.testing.assert_array_equal(weights["none"], np.ones(4))
    want = [0.5] + [1 / (1 + np.exp(2.0 / s)) + 0.5 for s in (0.5, 2.0, 1e6)]
    np.testing.assert_allclose(weights["emphasize"], want, rtol=1e-6)
    want = [1.0] + [1 / (1 + (s / 2.0) ** 2) for s in (0.5, 2.0, 1e6)]
    np.testing.assert_allclose(weights["discount"], want, rtol=1e-6)
    assert np.all(np.diff(weights["emphasize"]) > 0) and np.all(np.diff(weights["discount"]) < 0)
    mean = jnp.array([[0.0, -0.05, 0.5, -4.0]])
    varied = variant(
        lambda s, m: ops.uncertainty_weights(
            s, mode="coefficient_of_variation", temperature=2.0, mean=m, floor=0.25
        )
    )(sigma, mean)
    want = [1 / (1 + (s / m / 2.0) ** 2) for s, m in ((0, 0.25), (0.5, 0.25), (2, 0.5), (1e6, 4))]
    np.testing.assert_allclose(varied[0], want, rtol=1e-6)
    options = {"mode": "coefficient_of_variation"}
    slopes = jax.grad(
        lambda s, m: ops.uncertainty_weights(s, mean=m, **options).sum(), argnums=(0, 1)
    )
    for gradient in slopes(sigma, mean):
        np.testing.assert_array_equal(gradient, np.zeros((1, 4)))
    for mode in weights:
        gradient = jax.grad(lambda s, m=mode: ops.uncertainty_weights(s, mode=m).sum())(sigma)
        np.testing.assert_array_equal(gradient, np.zeros((1, 4)))


def test_bad_options():
    targets, rewards, noise, times = example()
    v = linear(LIVE)
    with pytest.raises(ValueError, match="base is 'kept'; allowed: keep, shift"):
        ops.distributional_cfm_loss(v, v, rewards, noise, times, base="kept")
    with pytest.raises(ValueError, match="discount is 2.0"):
        ops.distributional_cfm_loss(v, v, rewards, noise, times, discount=2.0)
    with pytest.raises(ValueError, match="mode is 'jump'; allowed: map, reflow, straight"):
        ops.geometric_consistency_loss(v, v, noise, times, mode="jump")
    with pytest.raises(ValueError, match="mode is 'more'; allowed: none, emphasize, discount"):
        ops.uncertainty_weights(noise, mode="more")
    with pytest.raises(ValueError, match="temperature is 0.0"):
        ops.uncertainty_weights(noise, mode="discount", temperature=0.0)
    with pytest.raises(ValueError, match="mean is None; allowed: the mean of the return"):
        ops.uncertainty_weights(noise, mode="coefficient_of_variation")
    with pytest.raises(ValueError, match="floor is 0.0"):
        ops.uncertainty_weights(noise, floor=0.0)
    with pytest.raises(AssertionError):
        ops.uncertainty_weights(noise, mode="coefficient_of_variation", mean=noise[..., :2])
    with pytest.raises(AssertionError):
        ops.anchor_loss(v, targets[..., :2], noise, times)
