"""What spans sections of a configuration, but for the parts of an algorithm."""

import operator
from typing import Any

# Links that make more of verdicts than two values, or that change their error rates.
_NOT_BINARY = (
    "learned",
    "gaussian",
    "spike",
    "correction",
    "length",
    "feature",
    "squash",
    "clip",
    "rank",
)


def check_sections(config: Any) -> None:
    """Raise ValueError, in one sentence, where sections of a `Config` contradict one another."""
    _check_lengths(config)
    _check_log_probs(config)
    _check_frozen(config)
    _check_rollout_devices(config)
    _check_step_scaling(config)
    _check_channel(config)
    _check_groups(config)
    _check_parts(config)
    _check_partial(config)


def _check_lengths(config: Any) -> None:
    longest = config.train.prompt_length + config.sampling.max_new_tokens
    if longest > config.model.max_positions:
        raise ValueError(
            f"train.prompt_length + sampling.max_new_tokens is {longest}; it must be at most "
            f"model.max_positions, {config.model.max_positions}"
        )
    if config.rewards.length.buffer > config.sampling.max_new_tokens:
        raise ValueError(
            f"rewards.length.buffer is {config.rewards.length.buffer}; it must be at most "
            f"sampling.max_new_tokens, {config.sampling.max_new_tokens}"
        )


def _check_log_probs(config: Any) -> None:
    if config.sampling.temperature == 0.0:
        raise ValueError("sampling.temperature is 0.0; training needs samples, so above 0")
    truncating = config.sampling.top_k > 0 or config.sampling.top_p < 1.0
    if truncating and not config.log_probs.recompute:
        raise ValueError(
            "log_probs.recompute is False; with top_k or top_p the sampler's log-probabilities "
            "belong to a truncated distribution, so it must be True"
        )
    if config.objective.importance_cap > 0.0 and not config.log_probs.recompute:
        raise ValueError(
            f"objective.importance_cap is {config.objective.importance_cap} and "
            "log_probs.recompute False; without log-probabilities of the trainer there is no "
            "ratio to cap, so it must be 0.0"
        )
    if config.train.behaviour_lag > 0 and not config.log_probs.recompute:
        raise ValueError(
            f"train.behaviour_lag is {config.train.behaviour_lag} and log_probs.recompute False; "
            "the sampler's log-probabilities are those of an older policy, so it must be True"
        )


def _check_frozen(config: Any) -> None:
    if config.train.behaviour_lag > 0 and "policy" in config.train.frozen:
        raise ValueError(
            f"train.behaviour_lag is {config.train.behaviour_lag} and train.frozen names the "
            "policy; one that never changes is not behind itself, so it must be 0"
        )
    if not config.returns.outcome and "critic" not in config.train.frozen:
        raise ValueError(
            f"returns.outcome is False and train.frozen {config.train.frozen}; a critic that "
            "trained would learn that nothing is good, so it must name 'critic'"
        )


def _check_rollout_devices(config: Any) -> None:
    mesh, lag = config.mesh, config.train.behaviour_lag
    if mesh.rollout == 0:
        return
    if lag == 0:
        raise ValueError(
            f"mesh.rollout is {mesh.rollout} and train.behaviour_lag 0; devices that only sample "
            "would wait for those that train, so behaviour_lag must be at least 1"
        )
    if config.rewards.learned.samples > 0:
        raise ValueError(
            f"mesh.rollout is {mesh.rollout} and rewards.learned.samples "
            f"{config.rewards.learned.samples}; that reward reads states of the devices that "
            "train, so mesh.rollout must be 0"
        )


def _check_step_scaling(config: Any) -> None:
    for name in ("critic_optimizer", "warm_start.optimizer"):
        scaling = operator.attrgetter(name)(config).step_scaling
        if scaling != "none":
            raise ValueError(
                f"{name}.step_scaling is {scaling!r}; only the policy has importance weights, "
                "so it must be 'none'"
            )
    objectives = config.objective.build().values()
    if config.policy_optimizer.step_scaling != "none" and not any(
        "behaviour" in objective.needs for objective in objectives
    ):
        raise ValueError(
            f"policy_optimizer.step_scaling is {config.policy_optimizer.step_scaling!r}; "
            f"objective {config.objective.name!r} does not weigh responses against the policy "
            "that sampled, so it must be 'none'"
        )


def _check_channel(config: Any) -> None:
    rates = config.advantage.channel
    if not rates.is_on:
        return
    for name in _NOT_BINARY:
        if getattr(config.rewards, name) != type(getattr(config.rewards, name))():
            raise ValueError(
                f"advantage.channel has rates {rates.false_positive} and {rates.false_negative}, "
                f"of verdicts that are right or wrong, and rewards.{name} makes other rewards of "
                f"them; the section rewards.{name} must be left at its defaults"
            )


def _check_groups(config: Any) -> None:
    if config.train.samples > 1:
        return
    for name, value, off in (
        ("majority.threshold", config.rewards.majority.threshold, 0.0),
        ("rank.within", config.rewards.rank.within, ""),
    ):
        if value not in (off, "batch"):
            raise ValueError(
                f"rewards.{name} is {value!r} and train.samples 1; it compares several responses "
                f"to a prompt, so it must be {off!r}, or train.samples at least 2"
            )


def _check_parts(config: Any) -> None:
    if config.sampling.parts > config.train.prompts:
        raise ValueError(
            f"sampling.parts is {config.sampling.parts}; it must be at most train.prompts, "
            f"{config.train.prompts}"
        )


def _check_partial(config: Any) -> None:
    partial, limit = config.partial, config.sampling.max_new_tokens
    if partial.tokens == 0:
        return
    if partial.tokens >= limit or limit % partial.tokens:
        raise ValueError(
            f"partial.tokens is {partial.tokens} and sampling.max_new_tokens {limit}; it must be "
            "smaller and divide it, so that every round has room for as many tokens"
        )
    if config.plan.name != "uniform":
        raise ValueError(
            f"partial.tokens is {partial.tokens} and plan.name {config.plan.name!r}; responses "
            "that come in a later iteration fit no plan but 'uniform'"
        )
    if not config.log_probs.recompute:
        raise ValueError(
            f"partial.tokens is {partial.tokens} and log_probs.recompute False; the sampler's "
            "log-probabilities are those of several policies, so it must be True"
        )


def keeps_states(config: Any) -> bool:
    """Whether `train.keep_states` is on and the sampler's hidden states are the learner's.

    All rows are then sampled by the policy that the iteration starts with, in its precision, and
    nothing reads the state after the last token, which no sampler computes.
    """
    return (
        config.train.keep_states
        and (config.train.behaviour_lag, config.partial.tokens) == (0, 0)
        and config.sampling.cache_dtype in ("", config.model.dtype)
        and config.plan.name in ("uniform", "refill", "elimination")
        and config.returns.overlong != "bootstrap"
    )
