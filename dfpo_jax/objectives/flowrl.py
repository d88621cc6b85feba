"""FlowRL: match the distribution of rewards, by a balance of every response (arXiv 2509.15207)."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from dfpo_jax import ops
from dfpo_jax.metric import Metric
from dfpo_jax.models.partition import Partition
from dfpo_jax.objectives.interface import Objective
from dfpo_jax.settings import check_choice, check_interval, check_unread
from dfpo_jax.types import Loss

# How a response is weighted, and where its mean log-probability is clamped.
TREATMENTS = {
    "clipped": ("clipped", None),
    "unclipped": ("unclipped", None),
    "capped": ("capped", None),
    "clip_only": ("capped", "every"),
    "gspo_selection": ("capped", "gspo"),
    "dapo_clip": ("capped", "dapo"),
    "tis_clip": (None, None),
}


@dataclass(frozen=True)
class Flowrl:
    """w delta^2 of every response, see `ops.flowrl_residual`; averaged over responses.

    The scaled reward is `ops.group_relative` of the rewards; no advantage is read. log Z is a
    network on the mean of the policy's hidden states over the prompt, see `models.partition`; its
    gradient flows into the policy too. There is no other KL or bonus. `importance_cap` must be 0:
    the treatments weight a response as each source does.

    Attributes:
      beta: nats per token and unit of the scaled reward (published: 15).
      importance: the treatment of w, see `ops.flowrl_weights` and `ops.flowrl_clamp`: "clipped"
        (the paper), "unclipped" (its first code), "capped" (its later code), or the author's
        variants, which are commented out in a fork of verl: "clip_only", "gspo_selection" and
        "dapo_clip" (capped weights, and a clamped mean log-probability for every response, or those
        that GSPO's or DAPO's clip selects) and "tis_clip" (both ratios of `ops.sequence_ratio`:
        policy to old policy, clipped; old policy to sampler, capped).
      low, high: w, or a mean log-probability, is clipped to 1 - low and 1 + high.
      cap: the largest w, or with "tis_clip" the largest ratio of old policy to sampler.
      log_z: "network", or "offline": of every group by importance sampling, see `ops.flowrl_log_z`,
        fixed during an iteration. Of its source, DISA (arXiv 2605.17295), only a summary is known,
        which estimates once before training; to estimate at every iteration is ours.

    Raises:
      ValueError: a value outside its range, or one that nothing reads; named with what is allowed.
    """

    anchored: ClassVar[bool] = True
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "policy/loss",
            "Squared distance of the responses from FlowRL's balance, in squared nats per token, "
            "mean over responses.",
            formula="`w delta^2`, `delta = log Z + mean_t log pi - beta r - mean_t log pi_ref` "
            "with the reward r scaled within its group",
            healthy="Falling. Of the order of `objective.flowrl.beta` squared at the start, as "
            "scaled rewards have a deviation of about 1; it ends above 0.",
            advice="Where it does not fall, beta asks for more than the policy can move: lower "
            "`objective.flowrl.beta`, or raise `policy_optimizer.learning_rate`.",
        ),
        Metric(
            "policy/log_z",
            "log Z of the prompts, in nats, mean over responses: of the network, or with "
            "`objective.flowrl.log_z=offline` the estimate by importance sampling.",
            healthy="Moving from 0, where the network starts, to a steady value.",
            advice="Where it drifts without end, lower `policy_optimizer.learning_rate`, or set "
            "`objective.flowrl.log_z=offline`.",
        ),
        Metric(
            "policy/importance",
            "Weight w of the responses in the loss, mean over responses.",
            formula="by `objective.flowrl.importance`; clipped: `clip(w, 1 - low, 1 + high)`",
            healthy="1 at the first update of an iteration, and near it.",
            advice="At a bound, most responses have moved beyond it: lower "
            "`policy_optimizer.learning_rate`, `train.epochs` or `train.minibatches`.",
        ),
    )
    beta: float = 15.0
    importance: str = "clipped"
    low: float = 0.2
    high: float = 0.2
    cap: float = 10.0
    log_z: str = "network"

    def __post_init__(self):
        """Check ranges and names."""
        check_choice(self, "importance", tuple(TREATMENTS))
        check_choice(self, "log_z", ("network", "offline"))
        check_interval(self, "high", low=0.0)
        if not 0.0 <= self.low < 1.0:
            raise ValueError(f"low is {self.low}; it must be at least 0 and below 1")
        for name in ("beta", "cap"):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        because = f"importance is {self.importance!r}"
        if self.importance in ("unclipped", "capped"):
            check_unread(self, "low", "high", because=because)
        if self.importance in ("clipped", "unclipped"):
            check_unread(self, "cap", because=because)

    def build(self) -> Objective:
        """The objective: "loss", and the metrics "log_z" and "importance"."""
        network = Partition() if self.log_z == "network" else None

        def init(key, width):
            return network.init(key, jnp.zeros((1, 1, width)), jnp.ones((1, 1)))["params"]

        def prepare(old, rollout):
            rewards = jnp.asarray(rollout.rewards, jnp.float32)
            scaled = ops.group_relative(rewards, rollout.samples)
            rows = {"rewards": scaled}
            if network is None:
                inputs = (old.ref_log_probs, rollout.log_probs, scaled, old.mask, rollout.samples)
                rows["log_z"] = ops.flowrl_log_z(*inputs, beta=self.beta)
            return rows

        def terms(live, batch, context, own):
            del context
            rows = jax.lax.stop_gradient(batch.own["objective"])
            log_z = rows.get("log_z")
            if network is not None:
                prompt = live.hidden.shape[1] - batch.mask.shape[1]
                log_z = network.apply(
                    {"params": own}, live.hidden[:, :prompt], batch.valid[:, :prompt]
                )
            weight, log_probs = self._treated(live.log_probs, rows["rewards"], batch)
            reference = (batch.ref_log_probs, rows["rewards"], batch.mask)
            delta = ops.flowrl_residual(log_z, log_probs, *reference, beta=self.beta)

            def of_rows(value, **fields):
                per_token = jnp.broadcast_to(value[:, None], batch.mask.shape)
                return Loss(per_token, aggregation="sequence_mean", **fields)

            return {
                "loss": of_rows(weight * jnp.square(delta)),
                "log_z": of_rows(jax.lax.stop_gradient(log_z), weight=0.0),
                "importance": of_rows(weight, weight=0.0),
            }

        needs = {"reference", "groups"} | (
            {"behaviour"} if self.importance == "tis_clip" else set()
        )
        return Objective(terms, frozenset(needs), None if network is None else init, prepare)

    def _treated(self, log_probs, rewards, batch):
        """Weights [B], and the log-probabilities [B, R] that the residual takes."""
        old, bounds = batch.old_log_probs, {"clip_low": self.low, "clip_high": self.high}
        kind, clamp = TREATMENTS[self.importance]
        if kind is None:
            ratio = ops.sequence_ratio(log_probs, old, batch.mask)
            sampler = ops.sequence_ratio(old, batch.behaviour_log_probs, batch.mask)
            weight = jnp.clip(ratio, 1 - self.low, 1 + self.high) * jnp.minimum(sampler, self.cap)
            return jax.lax.stop_gradient(weight), log_probs
        weight = ops.flowrl_weights(log_probs, old, batch.mask, kind=kind, **bounds, cap=self.cap)
        if clamp is not None:
            log_probs = ops.flowrl_clamp(log_probs, old, rewards, batch.mask, kind=clamp, **bounds)
        return weight, log_probs
