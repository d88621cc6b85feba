"""Settings that nothing reads, because another part is chosen; refused on the command line."""

from collections.abc import Iterable
from typing import Any

from dfpo_jax.settings import Choice

# What only a critic reads, beside the section `critic` itself.
_EVALUATION = "evaluation.critic_"
_OF_CRITICS = ("critic_optimizer.", _EVALUATION)


def unread_setting(config: Any, name: str) -> str:
    """Why no chosen part reads a setting, the second half of a sentence; "" where one does.

    Args:
      config: the whole configuration.
      name: dotted name of the setting.
    """
    section, _, rest = name.partition(".")
    part, choice = rest.partition(".")[0], getattr(config, section)
    if isinstance(choice, Choice) and part in choice.parts and part != choice.name:
        return f"config.{section}.name is {choice.name!r}; only {part!r} reads it"
    shared = section == "critic" and part not in ("name", "none")
    if config.critic.name == "none" and (shared or name.startswith(_OF_CRITICS)):
        return "config.critic.name is 'none'; only a critic reads it"
    if name.startswith(_EVALUATION) and config.plan.build(config.train.samples).range is not None:
        return (
            f"config.plan.name is {config.plan.name!r}, which gives the rewards itself; a critic "
            "is only measured on those of the verifier"
        )
    network = section.removesuffix("_optimizer")
    if network == section or network not in config.train.frozen:
        return ""
    # Networks that objectives add are trained with the policy's settings.
    if network == "policy" and any(x.init for x in config.objective.build().values()):
        return ""
    return f"config.train.frozen names {network!r}; only a network that trains reads it"


def refuse_unread(config: Any, names: Iterable[str]) -> None:
    """Raise ValueError for a setting that no chosen part reads.

    A configuration file may hold settings of several parts, so that a command line can choose among
    them; what the command line itself sets must have an effect.

    Args:
      config: the whole configuration.
      names: dotted names of what the command line sets.
    """
    for name in sorted(names):
        if reason := unread_setting(config, name):
            raise ValueError(f"config.{name} is set and {reason}")
