"""The inverse of a noisy verifier, on what the critic predicts."""

from dataclasses import dataclass

import jax.numpy as jnp

from dfpo_jax import ops
from dfpo_jax.advantages.interface import View
from dfpo_jax.critics.interface import at_successors, lambda_returns, mixed_returns
from dfpo_jax.settings import check_interval
from dfpo_jax.types import Array, Steps

_ROUNDING = 1e-5  # of a reward in value units, whose ends are -1 and 1


@dataclass(frozen=True)
class Channel:
    """What the advantage reads, as a verifier without errors would have made it (ours).

    Rewards must be binary, the ends of a known range, which are -1 and 1 in value units. A critic
    that learned from a verifier with the rates rho0 and rho1 predicts the upper end with
    probability p = (1 + mean of its law) / 2. State by state, the advantage reads instead

      the law with q = clip((p - rho0) / J, 0, 1) at the upper end and 1 - q at the lower, J = 1 -
        rho0 - rho1; its quantile at the border lies between, so that the mean is 2 q - 1,
      rewards (r - rho0) / J, whose mean over the verifier's errors is the clean reward,
      samples of the return from both, within [-1, 1].

    What the critic learns, its metrics and its explained variance stay as they are.

    With this one pair of rates for all prompts, means change by one positive affine map where
    nothing is clipped: `gae` on the mean becomes 1 / J of what it was, and whitening undoes that.
    Ranks do not change affinely. Up to 1 / M, a return of 1 has the rank 1 - q and one of -1 the
    rank -q; without the inverse they have 1 - p and -p. Nor does the spread of the law, nor do
    means at states where the clip acts.

    Rates that differ by prompt, with which even means would not change affinely, are not read: a
    rollout has no columns for them. `rewards.correction` reads such rates, and corrects the rewards
    that the critic learns from.

    Attributes:
      false_positive: rho0, the probability that a wrong response is rewarded as right, in [0, 1].
      false_negative: rho1, the probability that a right response is rewarded as wrong, in [0, 1];
        rho0 + rho1 must be below 1. With both 0 nothing changes.

    Raises:
      ValueError: a rate is outside its range, or J is not above 0.
    """

    false_positive: float = 0.0
    false_negative: float = 0.0

    def __post_init__(self):
        """Check the rates."""
        check_interval(self, "false_positive", "false_negative", low=0.0, high=1.0)
        if not self.false_positive + self.false_negative < 1.0:
            raise ValueError(
                f"false_positive is {self.false_positive} and false_negative "
                f"{self.false_negative}; their sum must be below 1, as such verdicts say nothing "
                "about a response, or the opposite"
            )

    @property
    def is_on(self) -> bool:
        """Whether the verifier has errors."""
        return self.false_positive > 0.0 or self.false_negative > 0.0

    def inverted(self, key: Array, view: View, steps: Steps) -> tuple[View, Steps]:
        """The view and the steps of a verifier without errors.

        Args:
          key: PRNG key of the samples of the return.
          view: of a critic.
          steps: whose only rewards are those of whole responses, undiscounted.
        """
        rates = {"false_positive": self.false_positive, "false_negative": self.false_negative}
        observed = jnp.clip((1.0 + jnp.mean(view.law, axis=-1)) / 2, 0.0, 1.0)
        right = ops.channel_inverse(observed, **rates)
        law = 2.0 * ops.bernoulli_quantiles(right, view.law.shape[-1]) - 1.0
        rewards = 2.0 * ops.corrected_rewards((1.0 + steps.rewards) / 2, **rates) - 1.0
        ends = ops.last_valid(steps.mask) > 0
        steps = steps.replace(rewards=jnp.where(ends, rewards, steps.rewards))

        def returns(lambda_):
            if law.shape[-1] == 1:
                return lambda_returns(law[..., 0], steps, lambda_)[..., None]
            samples = mixed_returns(key, at_successors(law, steps), steps, lambda_)
            # A sample that ties with an end of the law up to rounding must do so exactly.
            is_end = jnp.abs(samples) > 1.0 - _ROUNDING
            return jnp.where(is_end, jnp.sign(samples), samples)

        return view._replace(law=law, returns=returns), steps
