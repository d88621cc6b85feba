"""The interface every algorithm fills.

An algorithm is three pure functions, `init`, `prepare` and `loss`, plus an optional `predict` for
critic metrics. `prepare` sees the parameters frozen at the start of an iteration and turns a
rollout into everything the losses need; `loss` is differentiated. The training loop knows no more.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from flax import struct

from dfpo_jax.types import Array, ArrayTree, Rollout, Term, TrainState

ADVANTAGES = ("gae", "sigma", "rank")
OVERLONG = ("terminal", "bootstrap", "mask")
KL_KINDS = ("k1", "k2", "k3")


class Algorithm(NamedTuple):
    """Three pure functions and a diagnostic.

    Attributes:
      init: (key, policy_params) -> params, a dict with "policy" and, with a critic, "critic".
        Leaves may be flax partitioning boxes, which travel through unchanged.
      prepare: (state, rollout, key) -> (Batch, Context); nothing in it is differentiated.
      loss: (params, batch, context, key) -> dict of name -> `Term`.
      predict: (state, rollout) -> [B, R, M] sorted return quantiles in raw reward units at every
        state (M = 1 for a scalar critic), or None for algorithms without a critic.
      trajectories: (state, rollout) -> [17, B, M] normalised positions of the flow at s_0 for 17
        times from 0 to 1, for plots; None for critics that are no flow.
    """

    init: Callable[[Array, ArrayTree], ArrayTree]
    prepare: Callable[[TrainState, Rollout, Array], tuple["Batch", "Context"]]
    loss: Callable[[ArrayTree, "Batch", "Context", Array], dict[str, Term]]
    predict: Callable[[TrainState, Rollout], Array] | None = None
    trajectories: Callable[[TrainState, Rollout], Array] | None = None


@struct.dataclass
class Batch:
    """Per-sequence inputs of a loss; every leaf has the batch as its leading axis.

    Attributes:
      row: [B] int32, the row's number in the whole batch; losses fold it into their key, so that
        splitting a batch does not change their random numbers.
      sequence: [B, P + R] int32, prompt then response.
      valid: [B, P + R] float32, 1 on real tokens.
      tokens: [B, R] int32, the response part of `sequence`.
      mask: [B, R] float32, 1 where the losses count.
      old_log_probs: [B, R] frozen policy's log-probabilities at the sampling temperature.
      ref_log_probs: [B, R] the reference's, or None when no KL is asked for.
      importance: [B, R] truncated sampler-to-trainer weights (1 where switched off).
      advantages: [B, R].
      critic: the algorithm's own critic targets, or None.
    """

    row: Array
    sequence: Array
    valid: Array
    tokens: Array
    mask: Array
    old_log_probs: Array
    ref_log_probs: Array | None
    importance: Array
    advantages: Array
    critic: Any = None


@struct.dataclass
class Context:
    """Inputs of a loss that are shared by all rows.

    Attributes:
      kl_coefficient: [] current KL weight.
      policy_scale: [] 1, or 0 during critic warm-up.
      frozen: frozen parameters that a critic loss evaluates (never differentiated), or None.
    """

    kl_coefficient: Array
    policy_scale: Array
    frozen: ArrayTree | None = None


@dataclass(frozen=True)
class PolicyConfig:
    """The policy side of algorithm section 6 (PPO, arXiv 1707.06347, and later practice).

    Attributes:
      discount: gamma.
      gae_lambda: lambda of the policy's advantage estimate; the critic has its own.
      length_adaptive_alpha: 0, or alpha of lambda = 1 - 1/(alpha L) (VAPO, arXiv 2504.05118).
      advantage: "gae", "sigma" or "rank"; the last two need a distributional critic.
      sigma_floor: added to the spread in "sigma", in normalised value units.
      whiten: subtract the mean and divide by the deviation over all valid tokens.
      reward_clip: 0, or clip rewards to [-reward_clip, reward_clip] before anything else.
      clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high].
      dual_clip: 0, or the bound c > 1 on ratio * advantage for negative advantages.
      aggregation: "token_mean" or "sequence_mean".
      entropy_coefficient: weight of the entropy bonus (nats).
      kl_coefficient: weight of the KL to the reference; 0 keeps no reference.
      kl_kind: estimator "k1", "k2" or "k3".
      kl_in: "loss" or "reward".
      kl_target: 0 for a fixed coefficient, else the KL (nats per token) a controller aims at.
      kl_horizon: the controller's horizon, in iterations.
      overlong: what a response cut at the length limit is: "terminal" (return 0 after it),
        "bootstrap" (the critic's value after it) or "mask" (left out of every loss).
      importance_cap: 0, or the cap of truncated importance weights between sampler and trainer.
      recompute_log_probs: evaluate old log-probabilities with the trainer; False reuses the
        sampler's, equal up to float error when top-k and top-p are off.
      logits_chunk: the number of time steps of which logits exist at once, or 0 for as many as
        take half a GiB on a device; changes no result beyond rounding.

    Raises:
      ValueError: a value outside its range, named with what is allowed.
    """

    discount: float = 1.0
    gae_lambda: float = 0.95
    length_adaptive_alpha: float = 0.0
    advantage: str = "gae"
    sigma_floor: float = 0.1
    whiten: bool = True
    reward_clip: float = 0.0
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 0.0
    aggregation: str = "token_mean"
    entropy_coefficient: float = 0.0
    kl_coefficient: float = 0.0
    kl_kind: str = "k3"
    kl_in: str = "loss"
    kl_target: float = 0.0
    kl_horizon: int = 100
    overlong: str = "terminal"
    importance_cap: float = 0.0
    recompute_log_probs: bool = True
    logits_chunk: int = 0

    def __post_init__(self):
        """Check ranges and names."""
        check_interval(self, "discount", "gae_lambda", low=0.0, high=1.0)
        check_interval(
            self,
            "length_adaptive_alpha",
            "sigma_floor",
            "reward_clip",
            "entropy_coefficient",
            "kl_coefficient",
            "kl_target",
            "importance_cap",
            "clip_high",
            "logits_chunk",
            low=0.0,
        )
        check_interval(self, "clip_low", low=0.0, high=1.0)
        check_choice(self, "advantage", ADVANTAGES)
        check_choice(self, "overlong", OVERLONG)
        check_choice(self, "kl_kind", KL_KINDS)
        check_choice(self, "kl_in", ("loss", "reward"))
        check_choice(self, "aggregation", ("token_mean", "sequence_mean"))
        if self.dual_clip != 0.0 and self.dual_clip <= 1.0:
            raise ValueError(f"dual_clip is {self.dual_clip}; it must be 0 (off) or above 1")
        if self.kl_horizon < 1:
            raise ValueError(f"kl_horizon is {self.kl_horizon}; it must be at least 1")
        if self.kl_target > 0.0 and self.kl_coefficient == 0.0:
            raise ValueError("kl_target is set but kl_coefficient is 0; give it a start value")


def check_interval(config: Any, *names: str, low: float, high: float = float("inf")) -> None:
    """Raise ValueError unless every named field of `config` lies in [low, high]."""
    for name in names:
        value = getattr(config, name)
        if not low <= value <= high:
            raise ValueError(f"{name} is {value}; it must lie in [{low:g}, {high:g}]")


def check_choice(config: Any, name: str, allowed: tuple[str, ...]) -> None:
    """Raise ValueError unless the named field of `config` is one of `allowed`."""
    value = getattr(config, name)
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
