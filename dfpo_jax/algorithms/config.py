"""The settings of an algorithm: its parts, and what they share."""

from dataclasses import dataclass, field

from dfpo_jax.advantages import Advantages
from dfpo_jax.critics import Critics
from dfpo_jax.objectives import Objectives
from dfpo_jax.settings import check_choice, check_interval


@dataclass(frozen=True)
class Returns:
    """What the return of a token is.

    Attributes:
      discount: gamma.
      overlong: what follows a response that was cut at the length limit: "terminal" (nothing: its
        return ends there), "bootstrap" (the critic's value) or "mask" (every loss leaves it out).
      outcome: whether the reward of a response counts. False leaves rewards of single tokens, such
        as a KL, to a frozen critic that knows what is good (`critic.source`); the last token then
        gets the value of the state before it, so that an end is neither good nor bad.

    Raises:
      ValueError: a value outside its range, named with what is allowed.
    """

    discount: float = 1.0
    overlong: str = "terminal"
    outcome: bool = True

    def __post_init__(self):
        """Check ranges and names."""
        check_interval(self, "discount", low=0.0, high=1.0)
        check_choice(self, "overlong", ("terminal", "bootstrap", "mask"))


@dataclass(frozen=True)
class LogProbs:
    """How log-probabilities are evaluated.

    Attributes:
      recompute: evaluate the old policy's with the trainer; False reuses the sampler's, equal up to
        float error when top-k and top-p are off. Where an iteration makes one update, which starts
        with the old policy, the update itself evaluates them, at no cost.
      chunk: the number of time steps of which logits exist at once, or 0 for as many as take half a
        GiB on a device; changes results only by rounding.

    Raises:
      ValueError: a value outside its range, named with what is allowed.
    """

    recompute: bool = True
    chunk: int = 0

    def __post_init__(self):
        """Check ranges."""
        check_interval(self, "chunk", low=0)


@dataclass(frozen=True)
class AlgorithmConfig:
    """All settings of an algorithm; each attribute is a section documented at its class.

    Attributes:
      critic: what the return of a state is.
      advantage: how good an action was.
      objective: what the policy minimises.
      returns: what the return of a token is.
      log_probs: how log-probabilities are evaluated.
    """

    critic: Critics = field(default_factory=Critics)
    advantage: Advantages = field(default_factory=Advantages)
    objective: Objectives = field(default_factory=Objectives)
    returns: Returns = field(default_factory=Returns)
    log_probs: LogProbs = field(default_factory=LogProbs)
