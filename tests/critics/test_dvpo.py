"""The quantile critic with DVPO's losses, against equations 3 to 10 written in PyTorch."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfpo_jax.critics import Quantile
from dfpo_jax.types import Steps

HEADS, NUM, ALPHA, BETA = 3, 10, 0.3, 0.25
WEIGHTS = {
    "risk": 0.2,
    "cvar": 0.3,
    "upper_gain": 0.4,
    "mean_shift": 0.5,
    "tail_shape": 0.6,
    "tail_curvature": 0.7,
    "head_consistency": 0.8,
}


def dvpo(**settings):
    weights = {f"{name}_weight": weight for name, weight in WEIGHTS.items()}
    tails = {"tail_alpha": ALPHA, "tail_beta": BETA}
    options = dict(num_heads=HEADS, kappa=1.0, levels="right", **weights, **tails)
    return Quantile(NUM, **options | settings).build()


def initial(critic, width=4):
    return nn.unbox(critic.init(jax.random.key(0), width))


def torch_losses(torch, heads, target, emphasis):
    """Losses of one state: `heads` [N, M] with gradients, `target` [K] in any order."""
    num = heads.shape[1]
    levels = torch.arange(1, num + 1) / num
    theta, target = heads.mean(0), torch.sort(target).values
    errors = target[None, :] - theta[:, None]
    asymmetric = (levels[:, None] - (errors < 0).float()).abs()
    by_level = (
        asymmetric
        * torch.nn.functional.huber_loss(
            theta[:, None].expand_as(errors), target[None, :].expand_as(errors), reduction="none"
        )
    ).mean(1)
    omega = torch.exp(-levels) if emphasis == "lower" else torch.exp(-(1 - levels))
    if emphasis == "mean_upper":  # as in the third-party code: a factor of the whole loss
        risk = by_level.mean() * omega.mean()
    else:
        risk = (omega * by_level).mean()
    ordered = torch.sort(theta).values

    def share(size, level, upper):
        left = torch.clamp(level * size - torch.arange(size), 0, 1)
        return (left.flip(0) if upper else left) / left.sum()

    def mean(x, level, upper=False):
        return (share(len(x), level, upper) * x).sum()

    def variance(x, level, upper=False):
        return mean((x - mean(x, level, upper)) ** 2, level, upper)

    bend = ordered[2:] - 2 * ordered[1:-1] + ordered[:-2]
    pairs = [(i, k) for i in range(len(heads)) for k in range(i + 1, len(heads))]
    return {
        "loss": by_level.mean(),
        "risk": risk,
        "cvar": (mean(ordered, ALPHA) - mean(target, ALPHA)) ** 2,
        "upper_gain": (mean(ordered, BETA, True) - mean(target, BETA, True)) ** 2,
        "mean_shift": torch.relu(target.mean() - ordered.mean()),
        "tail_shape": torch.relu(variance(ordered, ALPHA) - variance(target, ALPHA))
        + torch.relu(variance(target, BETA, True) - variance(ordered, BETA, True)),
        "tail_curvature": torch.relu(mean(bend, ALPHA)) + torch.relu(-mean(bend, BETA, True)),
        "head_consistency": sum(((heads[i] - heads[k]) ** 2).sum() for i, k in pairs) / len(pairs),
    }


@pytest.mark.parametrize("emphasis", ["lower", "upper", "mean_upper"])
def test_losses_and_gradients_equal_those_in_pytorch(emphasis):
    torch = pytest.importorskip("torch")
    critic, rng = dvpo(risk_emphasis=emphasis), np.random.default_rng(2)
    outputs = rng.normal(size=(HEADS, NUM)).astype(np.float32)
    targets = (0.3 + 2 * rng.normal(size=(2, 3, 7))).astype(np.float32)
    params = initial(critic)
    # States of zeros leave the bias, so that its gradient is that of the heads' outputs.
    params["output"]["bias"] = outputs.reshape(-1)
    states = jnp.zeros((2, 4, 4))

    def total(params):
        terms = critic.losses(params, states, targets, params, None)
        weighted = {name: (x.weight, x.per_token) for name, x in terms.items()}
        return sum(weight * loss.sum() for weight, loss in weighted.values()), weighted

    (_, ours), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    heads = torch.tensor(outputs, requires_grad=True)
    assert set(ours) == {"loss", *WEIGHTS}
    whole, seen = 0.0, {}
    for index in np.ndindex(2, 3):
        for name, loss in torch_losses(
            torch, heads, torch.tensor(targets[index]), emphasis
        ).items():
            weight, per_token = ours[name]
            np.testing.assert_allclose(per_token[index], loss.item(), rtol=1e-4, atol=1e-6)
            assert float(weight) == pytest.approx(WEIGHTS.get(name, 1.0))
            whole = whole + WEIGHTS.get(name, 1.0) * loss
            seen[name] = seen.get(name, 0.0) + loss.item()
    assert all(value > 0 for value in seen.values()), seen
    whole.backward()
    found = np.asarray(gradient["output"]["bias"]).reshape(HEADS, NUM)
    np.testing.assert_allclose(found, heads.grad.numpy(), rtol=1e-4, atol=1e-5)


def test_heads_start_apart_and_their_mean_is_the_law():
    critic = dvpo()
    params, states = initial(critic, 64), jax.random.normal(jax.random.key(1), (2, 3, 64))
    reading = critic.read(params, states)
    assert reading.shape == (2, 3, HEADS, NUM)
    heads = np.asarray(critic.heads(reading))
    assert np.all(np.ptp(heads, axis=-1) > 0) and np.abs(reading).max() < 0.1
    np.testing.assert_allclose(heads, np.mean(reading, axis=-1), atol=1e-6)
    expected = np.sort(np.mean(reading, axis=-2), axis=-1)
    np.testing.assert_allclose(critic.law(reading), expected, atol=1e-6)
    assert critic.gives == {"value", "law", "heads"}
    assert Quantile().build().gives == {"value", "law"} and Quantile().build().heads is None


def test_targets_are_quantiles_plus_distributional_gae():
    critic = dvpo(target_mode="average")
    rng = np.random.default_rng(2)
    reading = rng.normal(size=(2, 5, HEADS, NUM)).astype(np.float32)
    mask = np.array([[1, 1, 1, 1], [1, 0, 1, 0]], np.float32)
    steps = Steps(rng.normal(size=(2, 4)).astype(np.float32), mask, np.array([True, False]), 0.9)
    found = critic.targets(jax.random.key(0), reading, steps, 0.8)
    law = np.sort(reading.mean(axis=-2), axis=-1)
    for j in range(NUM):
        for b, slots in ((0, [0, 1, 2, 3]), (1, [0, 2])):
            advantage, after = 0.0, law[b, 4, j] if b == 0 else 0.0
            for i in reversed(slots):
                error = steps.rewards[b, i] + 0.9 * after - law[b, i, j]
                advantage, after = error + 0.9 * 0.8 * advantage, law[b, i, j]
                np.testing.assert_allclose(found[b, i, j], after + advantage, atol=1e-5)
