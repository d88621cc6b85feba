"""Parts of a user's own, which tests name as "toy_parts:CLASS"."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from dfpo_jax.critics import Quantile
from dfpo_jax.critics.units import AFFINE
from dfpo_jax.metric import Metric
from dfpo_jax.objectives import Clip, Objective
from dfpo_jax.plans import Drawn, Plan
from dfpo_jax.types import Loss


@dataclass(frozen=True)
class Guess:
    """The clipped surrogate, and a network of its own that guesses the reward at every token."""

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("policy/guess", "Mean squared error of the guesses."),
    )
    weight: float = 1.0

    def build(self):
        clip = Clip().build()

        def init(key, width):
            return {"kernel": jax.random.normal(key, (width,)), "bias": jnp.zeros(())}

        def terms(live, batch, context, own):
            states = jax.lax.stop_gradient(live.hidden[:, -batch.tokens.shape[1] - 1 : -1])
            guesses = jnp.einsum("btd,d->bt", states, own["kernel"]) + own["bias"]
            errors = jnp.square(guesses - batch.own["objective"][:, None])
            found = clip.terms(live, batch, context, None)
            return found | {"guess": Loss(errors, weight=self.weight)}

        return Objective(terms, init=init, prepare=lambda old, rollout: rollout.rewards)


@dataclass(frozen=True)
class Better:
    """Two responses are drawn for every row, in two rounds, and the better one is kept."""

    def build(self, samples):
        def collect(draw, prompts, count, samples):
            items = prompts(count)
            first, second = (draw(items, samples, number) for number in range(2))
            better = np.asarray(second.rollout.rewards) > np.asarray(first.rollout.rewards)

            def pick(a, b):
                return np.where(better.reshape(-1, *[1] * (np.ndim(a) - 1)), b, a)

            rollout = jax.tree.map(pick, first.rollout, second.rollout)
            pairs = zip(first.texts, second.texts, better, strict=True)
            texts = [b if is_better else a for a, b, is_better in pairs]
            return Drawn(rollout, texts, items), {"plan/replaced": float(better.mean())}

        return Plan(collect, frozenset({"groups"} if samples >= 2 else ()))


@dataclass(frozen=True)
class Plain:
    """A critic of three quantiles that knows no units."""

    def build(self):
        return Quantile(3).build()


@dataclass(frozen=True)
class Mapped:
    """One that learns in the units that it is given."""

    def build(self, units=AFFINE):
        return Quantile(3).build(units)
