"""Which parts work together: what one needs against what the others give."""

from dfpo_jax.algorithms.config import AlgorithmConfig
from dfpo_jax.plans import Plans


def check_parts(config: AlgorithmConfig, plan: Plans | None = None, samples: int = 2) -> None:
    """Raise ValueError, in one sentence, for parts that cannot work together.

    Args:
      config: critic, advantage and objective.
      plan: how rollouts are collected; None for any.
      samples: responses per prompt.
    """
    critic, advantage = config.critic.build(), config.advantage.build()
    chosen = {"objective": config.objective.name}
    objectives = {chosen.get(k, k): part for k, part in config.objective.build().items()}
    gives = {f"critic {config.critic.name!r}": frozenset() if critic is None else critic.gives}
    if plan is not None:
        gives[f"plan {plan.name!r} with train.samples={samples}"] = plan.build(samples).gives
    reader = f"advantage {config.advantage.name!r}"
    needs = {reader: advantage.needs}
    if not config.returns.outcome:
        needs["returns.outcome False"] = frozenset({"value"})
    if config.returns.overlong == "bootstrap":
        needs["returns.overlong 'bootstrap'"] = frozenset({"value"})
    needs |= {f"objective {name!r}": part.needs for name, part in objectives.items()}
    given = frozenset({"reference", "behaviour", "scores"}).union(*gives.values())
    if plan is None:
        given |= frozenset({"groups", "pool", "expert"})
    for who, wanted in needs.items():
        for need in sorted(wanted - given):
            words = _missing(who, need, gives, config, plan)
            raise ValueError(words + (_alternatives(config, given) if who == reader else ""))
    if not config.returns.outcome and not config.critic.source:
        raise ValueError(
            "returns.outcome is False and critic.source ''; nothing would know what is good, so "
            "critic.source must name the work directory of a run that trained a value model"
        )
    if critic is not None and critic.quiet_steps:
        _check_quiet_steps(config, objectives)
    if config.advantage.channel.is_on:
        _check_channel(config, objectives, advantage.needs)
    if advantage.whole_response:
        _check_whole_responses(config, objectives, critic is None)


def _missing(who: str, need: str, gives: dict, config: AlgorithmConfig, plan) -> str:
    others = [
        f"critic {name!r}"
        for name, part in config.critic.parts.items()
        if (built := part.build()) is not None and need in built.gives
    ]
    for name, part in plan.parts.items() if plan is not None else ():
        if need in (built := part.build(2)).gives and built.range is None:
            others.append(f"plan {name!r} with train.samples of 2 or more")
    found = ", ".join(f"{k} gives {', '.join(sorted(v)) or 'nothing'}" for k, v in gives.items())
    givers = ", ".join(others) or "no part that is registered"
    return f"{who} needs {need}; {found}; it is given by {givers}"


def _alternatives(config: AlgorithmConfig, given: frozenset[str]) -> str:
    parts = config.advantage.parts.items()
    fit = ", ".join(repr(name) for name, part in parts if part.build().needs <= given)
    return f"; advantages that need no more than that: {fit}"


def _check_quiet_steps(config: AlgorithmConfig, objectives: dict) -> None:
    reader = (
        f"critic {config.critic.name!r} with units {config.critic.units!r} relates successive "
        "states only where their returns are equal (its dcfm_weight is above 0)"
    )
    if config.returns.discount != 1.0:
        raise ValueError(
            f"returns.discount is {config.returns.discount}; {reader}, so it must be 1.0, or "
            "critic.units 'affine'"
        )
    _check_token_rewards(objectives, reader, " or critic.units be 'affine'")


def _check_channel(config: AlgorithmConfig, objectives: dict, needs: frozenset[str]) -> None:
    """Raise ValueError where the returns are not binary, or nothing reads a critic."""
    rates = config.advantage.channel
    who = f"advantage.channel has rates {rates.false_positive} and {rates.false_negative}"
    if not needs & {"value", "law"}:
        raise ValueError(
            f"{who}; advantage {config.advantage.name!r} reads no critic, so they must be 0.0"
        )
    for name, found, wanted in (
        ("returns.discount", config.returns.discount, 1.0),
        ("returns.outcome", config.returns.outcome, True),
        ("critic.source", config.critic.source, ""),
    ):
        if found != wanted:
            raise ValueError(
                f"{name} is {found!r}; {who}, which belong to returns at the two ends of the range "
                f"of rewards, so it must be {wanted!r}"
            )
    if config.returns.overlong == "bootstrap":
        raise ValueError(
            f"returns.overlong is 'bootstrap'; {who}, which belong to returns at the two ends of "
            "the range of rewards, so it must be 'terminal' or 'mask'"
        )
    _check_token_rewards(
        objectives, f"{who}, which belong to returns at the two ends of the range of rewards"
    )


def _check_whole_responses(config: AlgorithmConfig, objectives: dict, alone: bool) -> None:
    reader = f"advantage {config.advantage.name!r} reads rewards of whole responses alone"
    if alone and config.returns.discount != 1.0:  # a critic would read it
        raise ValueError(
            f"returns.discount is {config.returns.discount}; {reader}, so it must be 1.0"
        )
    if not config.returns.outcome:
        raise ValueError(f"returns.outcome is False; {reader}, so it must be True")
    _check_token_rewards(objectives, reader)


def _check_token_rewards(objectives: dict, reader: str, otherwise: str = "") -> None:
    """Raise ValueError where an objective adds rewards of single tokens, which `reader` forbids."""
    for name, objective in objectives.items():
        if objective.reward is not None:
            raise ValueError(
                f"objective {name!r} adds rewards of single tokens; {reader}, so it must stand in "
                f"the loss{otherwise}"
            )
