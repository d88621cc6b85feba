"""The contract of a critic."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dfpo_jax.contracts import measure
from dfpo_jax.contracts.measure import BOOTSTRAP, MASK, STATES, B, D, R, require
from dfpo_jax.critics.check import check_critic
from dfpo_jax.critics.interface import Critic
from dfpo_jax.types import Steps


def critic(settings: Any) -> None:
    """Raise AssertionError unless a critic keeps the contract of `critics.Critic`.

    Shapes, and a sorted law. At lambda 1, `returns` are the observed returns, and go on behind the
    last token where `steps.bootstrap` says so. Losses and gradients are finite, also of empty rows;
    splitting a batch changes no loss; rewards and states of no token change nothing; no gradient
    reaches rows or old parameters.
    """
    name, part = measure.built(settings, check_critic)
    run, random = jax.jit(_program(part)), np.random.default_rng(0)
    params = measure.noisy(jax.jit(part.init, static_argnums=1)(jax.random.key(1), D), random)
    old = measure.noisy(params, random)
    states = random.normal(size=(B, R + 1, D)).astype(np.float32)
    rewards = (random.uniform(-0.15, 0.15, MASK.shape) * MASK).astype(np.float32)

    def result(states=states, rewards=rewards, mask=MASK, bootstrap=BOOTSTRAP) -> dict:
        found = run(params, old, states, Steps(rewards, mask, bootstrap, measure.DISCOUNT))
        measure.check_finite(name, found)
        return found

    found, ended, _ = result(), result(bootstrap=BOOTSTRAP & False), result(mask=0 * MASK)
    require(np.all(np.diff(found["law"]) >= 0), name, "law must be sorted ascending")
    _check_returns(name, rewards, found["returns"], ended["returns"])
    for key, mask in found["masks"].items():
        require(
            np.all(np.asarray(mask)[MASK == 0] == 0),
            name,
            f"the mask of the loss {key!r} must be 0 where that of the steps is",
        )
    measure.check_split(name, found)
    measure.check_stopped(name, found["gradients"], "rows", "old_params")
    learns = any(np.any(x) for path, x in found["gradients"].items() if path.startswith("params"))
    require(learns, name, "losses must have a gradient with respect to params")
    junk = result(measure.only(STATES, states), measure.only(MASK, rewards))
    for key in ("law", "returns", *(["heads"] if part.heads else [])):
        measure.check_junk(name, key, found[key], junk[key])
    measure.check_losses_junk(name, found, junk)


def _program(part: Critic) -> Callable[..., dict]:
    """Everything that the contract looks at, as one program."""

    def run(params, old, states, steps):
        key = jax.random.key(2)
        keys = jax.random.split(key, B)
        reading = part.read(old, states)

        def losses(inputs, where):
            rows = jax.tree.map(lambda x: x[where], inputs["rows"])
            return part.losses(
                inputs["params"], states[where], rows, inputs["old_params"], keys[where]
            )

        rows = part.targets(key, reading, steps, 0.9)
        inputs = {"params": params, "rows": rows, "old_params": old}
        heads = {} if part.heads is None else {"heads": part.heads(reading)[:, :-1]}
        return {
            "law": part.law(reading)[:, :-1],
            **heads,
            "returns": part.returns(key, reading, steps, 1.0),
            **measure.evaluate(losses, inputs, steps.mask),
        }

    return run


def _check_returns(name: str, rewards: np.ndarray, going_on: Any, ended: Any) -> None:
    observed = np.zeros((B, R + 1), np.float32)
    for i in reversed(range(R)):
        here = rewards[:, i] + measure.DISCOUNT * observed[:, i + 1]
        observed[:, i] = np.where(MASK[:, i] > 0, here, observed[:, i + 1])
    wanted = np.broadcast_to(observed[:, :R, None], ended.shape)
    require(
        measure.same(ended, wanted, MASK),
        name,
        "returns at lambda 1 must be the observed returns, discounted once for every token that "
        "counts",
    )
    beyond = np.any(np.abs(np.asarray(going_on) - wanted) > 1e-4, axis=-1)[MASK > 0]
    bootstraps = np.broadcast_to(BOOTSTRAP[:, None], MASK.shape)[MASK > 0]
    require(
        np.array_equal(beyond, bootstraps),
        name,
        "returns at lambda 1 must go on behind the last token where steps.bootstrap is true, and "
        "only there",
    )
