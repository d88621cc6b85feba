"""The contract of an advantage."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dfpo_jax.advantages.check import check_advantage, laws, view_of
from dfpo_jax.advantages.interface import Advantage, Scores
from dfpo_jax.contracts import measure
from dfpo_jax.contracts.measure import BOOTSTRAP, MASK, STATES, B, R
from dfpo_jax.trial import HEADS
from dfpo_jax.types import Steps


def advantage(settings: Any) -> None:
    """Raise AssertionError unless an advantage keeps the contract of `advantages.Advantage`.

    Shapes; finite everywhere, also where a batch is empty or has one token, where a law has no
    spread and where all responses have one reward; what belongs to no token changes nothing. It is
    tried with every kind of critic that its needs allow.
    """
    name, part = measure.built(settings, check_advantage)
    for quantiles in laws(part):
        _check(name, part, quantiles)


def _check(name: str, part: Advantage, quantiles: int | None) -> None:
    random = np.random.default_rng(0)
    rollout, several = measure.rollout(random), quantiles not in (None, 1)
    law = np.sort(random.normal(size=(B, R + 1, quantiles or 1)), axis=-1).astype(np.float32)
    samples = random.normal(size=(B, R, 4 if several else 1)).astype(np.float32)
    rewards = (random.normal(size=MASK.shape) * MASK).astype(np.float32)
    heads = random.normal(size=(B, R + 1, HEADS)).astype(np.float32)
    weights = Scores(random.uniform(size=B).astype(np.float32), 0.3 * law[:, 0, 0])

    @jax.jit
    def run(law, samples, heads, scores, steps, rollout):
        view = view_of(part.needs, law if quantiles else None, samples, heads, scores)
        keep = jnp.ones(MASK.shape) if part.keep is None else part.keep(view, steps)
        return part.estimate(view, steps, rollout), keep

    def result(
        law=law,
        samples=samples,
        rewards=rewards,
        mask=MASK,
        rollout=rollout,
        heads=heads,
        scores=weights,
    ) -> dict:
        steps = Steps(rewards, mask, BOOTSTRAP, measure.DISCOUNT)
        inputs = (law, samples, heads, scores, steps, rollout.replace(mask=mask))
        found = dict(zip(("estimate", "keep"), run(*inputs), strict=True))
        measure.check_finite(name, found)
        return found

    one = np.zeros_like(MASK)
    one[3, 0] = 1
    found, _, _ = result(), result(mask=0 * MASK), result(mask=one)
    constant = (
        np.broadcast_to(law[..., :1], law.shape),
        np.broadcast_to(samples[..., :1], samples.shape),
    )
    result(*constant, heads=0 * heads)
    equal = rollout.replace(rewards=np.ones_like(rollout.rewards))
    result(0 * law, 0 * samples, 0 * rewards, rollout=equal)  # as heads start, with equal rewards
    junk = result(
        measure.only(STATES, law),
        measure.only(MASK, samples),
        measure.only(MASK, rewards),
        rollout=measure.with_junk(rollout),
        heads=measure.only(STATES, heads),
    )
    for key in found:
        measure.check_junk(name, key, found[key], junk[key])
