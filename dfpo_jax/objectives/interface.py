"""What an objective is: losses of the policy per token, as pure functions of log-probabilities."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dfpo_jax.types import Array, ArrayTree, Batch, Context, Loss, Rollout


class Live(NamedTuple):
    """The policy that is trained, evaluated once for all objectives; differentiated.

    Attributes:
      hidden: [B, P + R, D] hidden states of prompt and response.
      log_probs: [B, R] of the response's tokens, at the sampling temperature.
      entropy: [B, R] (nats).
      top_log_probs: [B, R, K] of `batch.top_tokens`, stopped, or None where no objective has `top`.
    """

    hidden: Array
    log_probs: Array
    entropy: Array
    top_log_probs: Array | None = None


class Old(NamedTuple):
    """The policy that the iteration started with, and the reference, on a rollout.

    Attributes:
      hidden: [B, P + R, D] hidden states of prompt and response.
      log_probs: [B, R].
      ref_log_probs: [B, R], or None where no objective needs the reference.
      mask: [B, R], 1 where the losses count.
      controls: by name, [] what changes between iterations.
      expert_log_probs: [B, R] the old policy's of the expert's tokens, 0 where it has none; None
        where no objective needs "expert".
      heads: [B, R, N] values of the critic's heads at s_0 .. s_{R-1}; None where no objective needs
        "heads".
    """

    hidden: Array
    log_probs: Array
    ref_log_probs: Array | None
    mask: Array
    controls: Mapping[str, Array]
    expert_log_probs: Array | None = None
    heads: Array | None = None


class Objective(NamedTuple):
    """An objective. Build one by the `build` of its settings, such as `objectives.Clip().build()`.

    Attributes:
      terms: (live, batch, context, own params or None) -> `Loss` by name; a name becomes
        "policy/NAME". A loss counts on the batch's mask, is finite outside of it too, and stops
        gradients to `batch` and `context`.
      needs: what else there must be: "reference", "behaviour" (the log-probabilities that tokens
        were drawn with), "heads" of the critic, "groups", "pool" or "expert" of the plan.
      init: (key, D) -> parameters of a network of its own, which trains beside the policy.
      prepare: (old, rollout) -> rows of its own, which `terms` finds in `batch.own`.
      reward: (old) -> [B, R], added to the token rewards, in units of reward.
      controls: first values of what it changes between iterations, by name; a name becomes
        "policy/NAME" too. No other loss or control may have it, nor is it "gradient_norm" or
        "kl_old", which every policy has, or with the need "behaviour" one of "weight",
        "squared_weight" and "effective_samples".
      observe: (controls) -> controls, at the start of every iteration.
      adapt: (controls, means of the iteration's losses) -> controls, at its end. The means have
        the names "policy/NAME" of all objectives' losses and "policy/kl_old"; they are NaN where no
        update was made.
      top: K, of how many of its most probable tokens the sampler shall give log-probabilities.
    """

    terms: Callable[[Live, Batch, Context, ArrayTree | None], dict[str, Loss]]
    needs: frozenset[str] = frozenset()
    init: Callable[[Array, int], ArrayTree] | None = None
    prepare: Callable[[Old, Rollout], Any] | None = None
    reward: Callable[[Old], Array] | None = None
    controls: Mapping[str, float] = {}
    observe: Callable[[Mapping[str, float]], Mapping[str, float]] | None = None
    adapt: Callable[[Mapping[str, float], Mapping[str, float]], Mapping[str, float]] | None = None
    top: int = 0
