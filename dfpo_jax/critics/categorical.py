"""Categorical critics: probabilities of the return, learned by classification (HL-Gauss, C51)."""

import functools
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from dfpo_jax import ops
from dfpo_jax.critics.interface import Critic, at_successors, init_head, mixed_returns
from dfpo_jax.critics.units import AFFINE, Units
from dfpo_jax.metric import Metric
from dfpo_jax.models.value_heads import QuantileHead
from dfpo_jax.settings import check_choice, check_interval, check_unread
from dfpo_jax.types import Array, Loss


@dataclass(frozen=True)
class Categorical:
    """Cross-entropy on a histogram of the return, or on atoms.

    "gaussian" is HL-Gauss (arXiv 2403.03950, section 3.1), whose paper smooths the mean return of a
    state. Here every sample of the lambda-mixture is smoothed, so that the histogram is the law of
    the return (ours). "linear" is C51 (arXiv 1707.06887), whose paper projects one-step targets.
    Here it projects the same samples, as public code of DistRLVR (openreview 3e46ayVUgj) does.

    Attributes:
      num_bins: K bins of equal width, or K atoms.
      support: the bins cover [-support, support] in the units that the critic learns in; the first
        and the last atom lie at its ends. Returns outside count as them. In affine units rewards of
        a known range lie in [-1, 1]. In asinh units a return of 20 scales is 3.7, one of 1e4 is
        9.9.
      smoothing: deviation of the Gaussian, in widths of a bin; the paper's 0.75 by default.
      num_quantiles: M, equal shares of the mass, by whose means a state's distribution is read.
      projection: what becomes of a sample: "gaussian" (a Gaussian over the bins) or "linear"
        (shares of the two atoms around it).

    Raises:
      ValueError: a value outside its range, or a smoothing that nothing reads; named with what is
        allowed.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "critic/loss",
            "Cross-entropy between the histogram of the return's samples and the predicted one, in "
            "nats, mean over tokens.",
            formula="`-sum_k p_k log q_k` over bins or atoms",
            healthy="It falls from log K, 4.6 for the default of 101 bins, to the entropy of the "
            "targets. That is above 0: with the default smoothing about 1.2 for a return that is "
            "certain, and more for one that is not.",
            advice="Where it does not fall, raise `critic_optimizer.learning_rate`. Where it falls "
            "and `rollout/explained_variance` stays low, returns may lie outside "
            "`critic.categorical.support`, whose ends they count as.",
        ),
    )
    num_bins: int = 101
    support: float = 2.0
    smoothing: float = 0.75
    num_quantiles: int = 32
    projection: str = "gaussian"

    def __post_init__(self):
        """Check ranges and names."""
        check_interval(self, "num_bins", low=2)
        check_interval(self, "num_quantiles", low=3)
        check_choice(self, "projection", ("gaussian", "linear"))
        for name in ("support", "smoothing"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be finite and above 0")
        if self.projection == "linear":
            check_unread(self, "smoothing", because="projection is 'linear'")

    def build(self, units: Units = AFFINE) -> Critic:
        """The critic; its reading is the log-probabilities [B, T, K] of bins or atoms."""
        head = QuantileHead(self.num_bins)  # K linear outputs that start at 0
        project = _binned if self.projection == "gaussian" else _on_atoms
        project, law = functools.partial(project, self), functools.partial(_law, self, units)

        def read(params, states):
            return jax.nn.log_softmax(head.apply({"params": params}, states))

        def returns(key, log_probs, steps, lambda_):
            return mixed_returns(key, at_successors(law(log_probs), steps), steps, lambda_)

        def losses(params, states, rows, old_params, keys):
            del old_params, keys
            log_probs, rows = read(params, states)[:, :-1], jax.lax.stop_gradient(rows)
            return {"loss": Loss(-jnp.sum(rows * log_probs, axis=-1))}

        return Critic(
            init=lambda key, width: init_head(head, key, jnp.zeros((1, width))),
            read=read,
            law=law,
            returns=returns,
            targets=lambda *inputs: project(units.to(returns(*inputs))),
            losses=losses,
            gives=frozenset({"value", "law"}),
        )


def _line(config: Categorical, num: int) -> Array:
    return jnp.linspace(-config.support, config.support, num)


def _binned(config: Categorical, samples: Array) -> Array:
    """Probabilities [B, R, K] of the bins, averaged over the samples [B, R, S]."""
    sigma = config.smoothing * 2.0 * config.support / config.num_bins
    edges = _line(config, config.num_bins + 1)
    return jnp.mean(ops.gaussian_histogram(samples, edges, sigma=sigma), axis=-2)


def _on_atoms(config: Categorical, samples: Array) -> Array:
    """Probabilities [B, R, K] of the atoms, for equally heavy samples [B, R, S]."""
    mass = jnp.full_like(samples, 1.0 / samples.shape[-1])
    return ops.project_categorical(samples, mass, _line(config, config.num_bins))


def _law(config: Categorical, units: Units, log_probs: Array) -> Array:
    """Mean within each of M equal shares of the mass, in order and in value units: [B, T, M].

    A bin's mass is spread evenly over it, in the units that the critic learns in. The mean over the
    shares is that of the histogram. That of quantiles at M levels is not where the mass has gaps:
    of returns of -1 and 1 it would move in steps of 2 / M.
    """
    mass, num = jnp.exp(log_probs), config.num_quantiles
    if config.projection == "gaussian":
        low, width = _line(config, config.num_bins + 1)[:-1], 2.0 * config.support / config.num_bins
    else:
        low, width = _line(config, config.num_bins), 0.0
    levels, centres = jnp.linspace(0.0, 1.0, num + 1), units.mean(low, width)

    def lorenz(mass):  # [K] -> [M + 1] integrals of the quantile function up to each level
        below, sums = (jnp.pad(jnp.cumsum(x), (1, 0)) for x in (mass, mass * centres))
        k = jnp.clip(jnp.searchsorted(below, levels, side="right") - 1, 0, config.num_bins - 1)
        within = jnp.minimum(levels - below[k], mass[k])
        reached = within / jnp.maximum(mass[k], jnp.finfo(mass.dtype).tiny)
        return sums[k] + within * units.mean(low[k], width * reached)

    integrals = jnp.vectorize(lorenz, signature="(k)->(m)")(mass)
    return jnp.sort(num * jnp.diff(integrals, axis=-1), axis=-1)
