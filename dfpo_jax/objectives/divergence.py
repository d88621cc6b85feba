"""DPPO: a trust region by divergence from the policy that sampled (arXiv 2602.04879, section 5)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from dfpo_jax import ops
from dfpo_jax.metric import Metric
from dfpo_jax.objectives.interface import Objective
from dfpo_jax.settings import check_choice, check_interval, check_unread
from dfpo_jax.types import Loss

KINDS = ("tv", "kl", "topk_tv", "topk_kl")


@dataclass(frozen=True)
class Divergence:
    """-A min(ratio, cap) M log pi, weight and mask stopped; the ratio is to the sampler's policy.

    M is 0 where a token has left the trust region and A would push it further, see
    `ops.trust_region_mask`. As the ratio starts at the sampler's own log-probabilities, nothing
    else corrects for it: `importance_cap` must be 0. With `sampling.top_k` or `top_p` the sampler's
    policy is the truncated one, from which the trained one is away from the start.

    Attributes:
      divergence: "tv" or "kl" of the sampled token against all others, "topk_tv" or "topk_kl" over
        the `top` tokens that the sampler found most probable.
      tv_threshold: largest divergence, a probability, with "tv" or "topk_tv" (published: .15).
      kl_threshold: largest divergence, in nats, with "kl" or "topk_kl" (published: .05).
      top: K, with "topk_tv" and "topk_kl" (published: 20).
      cap: 0 (published for the study of stability), or the largest ratio (published at scale: 5).

    Raises:
      ValueError: a value outside its range, or one that nothing reads; named with what is allowed.
    """

    anchored: ClassVar[bool] = True
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "policy/loss",
            "The policy gradient within the trust region, in units of the advantage times nats, "
            "mean as `objective.aggregation` says.",
            formula="`-A min(rho, cap) M log pi`, weight and mask without gradient, `rho = "
            "exp(log pi - log mu)` against the policy that sampled",
            healthy="Its size says nothing: its gradient alone matters.",
            advice="Look at `rollout/reward` and `policy/kl_old` instead. Where it jumps, read "
            "`policy/gradient_norm`.",
        ),
        Metric(
            "policy/mask_fraction",
            "Share of the tokens that have no gradient, as they have left the trust region and the "
            "advantage would push them further.",
            formula="`1 - M`: the divergence from the sampler is above the threshold, and `A > 0 "
            "and rho > 1`, or `A < 0 and rho < 1`",
            healthy="Near 0 at the first update of an iteration, and small on average.",
            advice="Where it is large, lower `policy_optimizer.learning_rate`, `train.epochs` or "
            "`train.behaviour_lag`, or raise `objective.divergence.tv_threshold` "
            "(`objective.divergence.kl_threshold`). Large already at the first update: "
            "`sampling.top_k` and `sampling.top_p` put the sampler away from the policy.",
        ),
    )
    divergence: str = "tv"
    tv_threshold: float = 0.15
    kl_threshold: float = 0.05
    top: int = 20
    cap: float = 0.0

    def __post_init__(self):
        """Check ranges and names."""
        check_choice(self, "divergence", KINDS)
        check_interval(self, "tv_threshold", low=0.0, high=1.0)
        check_interval(self, "kl_threshold", "cap", low=0.0)
        check_interval(self, "top", low=1)
        because = f"divergence is {self.divergence!r}"
        check_unread(
            self, "kl_threshold" if self._kind == "tv" else "tv_threshold", because=because
        )
        if not self._over_top:
            check_unread(self, "top", because=because)

    @property
    def _kind(self) -> str:
        return self.divergence[-2:]

    @property
    def _over_top(self) -> bool:
        return self.divergence.startswith("topk")

    def build(self) -> Objective:
        """The objective: "loss", and the metric "mask_fraction", the share of masked tokens."""
        threshold = self.tv_threshold if self._kind == "tv" else self.kl_threshold

        def divergences(live, batch):
            tokens = (live.log_probs, batch.behaviour_log_probs)
            if not self._over_top:
                return ops.binary_divergence(*tokens, divergence=self._kind)
            included = jnp.any(batch.top_tokens == batch.tokens[..., None], axis=-1)
            return ops.top_k_divergence(
                *tokens, live.top_log_probs, batch.top_log_probs, included, divergence=self._kind
            )

        def terms(live, batch, context, own):
            del context, own
            sampler, advantages = batch.behaviour_log_probs, batch.advantages
            kept = ops.trust_region_mask(
                live.log_probs, sampler, advantages, divergences(live, batch), threshold=threshold
            )
            weight = ops.truncated_importance_weights(
                live.log_probs, sampler, cap=self.cap or math.inf
            )
            gain = jax.lax.stop_gradient(advantages * weight * kept)
            return {
                "loss": Loss(-gain * live.log_probs),
                "mask_fraction": Loss(1.0 - kept, weight=0.0),
            }

        top = self.top if self._over_top else 0
        return Objective(terms, frozenset({"behaviour"}), top=top)
