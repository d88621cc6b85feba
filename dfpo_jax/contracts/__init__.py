"""What every part must keep to, measured on small random rollouts: for notebooks and tests.

    from dfpo_jax import contracts

    contracts.critic(MyCritic())
    contracts.advantage(MyAdvantage())
    contracts.objective(MyObjective())

Each function takes the settings of a part, returns None where the part keeps its contract and
raises AssertionError with a sentence where it does not.
"""

from typing import Any

from dfpo_jax.contracts.advantages import advantage
from dfpo_jax.contracts.critics import critic
from dfpo_jax.contracts.measure import built
from dfpo_jax.contracts.objectives import objective
from dfpo_jax.plans.check import check_plan
from dfpo_jax.rewards.check import check_link
from dfpo_jax.rewards.interface import Range

__all__ = ["advantage", "critic", "link", "objective", "plan"]


def link(settings: Any, bounds: Range | None = (0.0, 1.0)) -> None:
    """Raise AssertionError unless a link of the reward chain keeps the contract of `rewards.Link`.

    Args:
      settings: of the link; it must act.
      bounds: range of the rewards that it receives, or None where no bound is known.
    """
    built(settings, lambda part, name: check_link(part, name, bounds))


def plan(settings: Any) -> None:
    """Raise AssertionError unless a plan keeps the contract of `plans.Plan`.

    Args:
      settings: of the plan, which is tried with 2 responses per prompt, and with 1 unless its
        `build` refuses that.
    """
    for samples in (1, 2):
        if samples == 1 and _refuses(settings, samples):
            continue
        built(settings, lambda part, name, n=samples: check_plan(part, name, n), samples)


def _refuses(settings: Any, samples: int) -> bool:
    """Whether a plan cannot have so many responses per prompt."""
    try:
        settings.build(samples)
    except ValueError:
        return True
    return False
