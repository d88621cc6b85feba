"""A categorical critic: a histogram of the return, learned by classification (HL-Gauss)."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from dfpo_jax import ops
from dfpo_jax.critics.interface import Critic, at_successors, init_head, mixed_returns
from dfpo_jax.models.value_heads import QuantileHead
from dfpo_jax.settings import check_interval
from dfpo_jax.types import Array, Loss


@dataclass(frozen=True)
class Categorical:
    """Cross-entropy on a Gaussian-smoothed histogram (HL-Gauss, arXiv 2403.03950, section 3.1).

    The paper smooths the mean return of a state; here every sample of the lambda-mixture is
    smoothed, so that the histogram is the law of the return (ours).

    Attributes:
      num_bins: K bins of equal width.
      support: the bins cover [-support, support] in value units, in which rewards of a known range
        lie in [-1, 1]. Returns outside count as its ends.
      smoothing: deviation of the Gaussian, in widths of a bin; the paper's 0.75 by default.
      num_quantiles: M, quantiles by which a state's distribution is read.

    Raises:
      ValueError: a value outside its range, named with what is allowed.
    """

    num_bins: int = 101
    support: float = 2.0
    smoothing: float = 0.75
    num_quantiles: int = 32

    def __post_init__(self):
        """Check ranges."""
        check_interval(self, "num_bins", low=2)
        check_interval(self, "num_quantiles", low=3)
        for name in ("support", "smoothing"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be finite and above 0")

    def build(self) -> Critic:
        """The critic; its reading is the bins' log-probabilities [B, T, K]."""
        head = QuantileHead(self.num_bins)  # K linear outputs that start at 0

        def read(params, states):
            return jax.nn.log_softmax(head.apply({"params": params}, states))

        def edges():
            return jnp.linspace(-self.support, self.support, self.num_bins + 1)

        def law(log_probs):
            mass = jnp.cumsum(jnp.exp(log_probs), axis=-1)
            mass = jnp.pad(mass, [(0, 0)] * (mass.ndim - 1) + [(1, 0)])
            levels, ends = ops.quantile_levels(self.num_quantiles), edges()
            inverse = functools.partial(jnp.interp, levels, fp=ends)
            return jnp.vectorize(inverse, signature="(k)->(m)")(mass)

        def returns(key, log_probs, steps, lambda_):
            return mixed_returns(key, at_successors(law(log_probs), steps), steps, lambda_)

        def targets(*inputs):
            samples = returns(*inputs)
            deviation = self.smoothing * 2.0 * self.support / self.num_bins
            return jnp.mean(smoothed_histogram(samples, edges(), deviation), axis=-2)

        def losses(params, states, rows, old_params, keys):
            del old_params, keys
            log_probs, rows = read(params, states)[:, :-1], jax.lax.stop_gradient(rows)
            return {"loss": Loss(-jnp.sum(rows * log_probs, axis=-1))}

        return Critic(
            init=lambda key, width: init_head(head, key, jnp.zeros((1, width))),
            read=read,
            law=law,
            returns=returns,
            targets=targets,
            losses=losses,
            gives=frozenset({"value", "law"}),
        )


def smoothed_histogram(samples: Array, edges: Array, deviation: float) -> Array:
    """Bin probabilities [..., K] of N(sample, deviation^2) within the edges [K + 1].

    p_k = (Phi((e_{k+1} - y) / s) - Phi((e_k - y) / s)) / (Phi((e_K - y) / s) - Phi((e_0 - y) / s))
    (arXiv 2403.03950, section 3.1), y the sample [...], cut to the edges.
    """
    y = jnp.clip(samples, edges[0], edges[-1])[..., None]
    below = jax.scipy.stats.norm.cdf(edges.reshape((1,) * samples.ndim + (-1,)), y, deviation)
    return jnp.diff(below, axis=-1) / (below[..., -1:] - below[..., :1])
