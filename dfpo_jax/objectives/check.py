"""Checks an objective of the user's own by tracing it on small shapes, before anything compiles."""

import functools
import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dfpo_jax import trial
from dfpo_jax.objectives.interface import Live, Objective, Old
from dfpo_jax.settings import call_custom
from dfpo_jax.types import VALUE_UNITS, Array, Batch, Context, Expert, Rollout

_B, _R, _P, _D = (trial.SIZES[letter] for letter in "BRPD")
_METRICS = ("gradient_norm", "kl_old")  # of every policy; a loss or control becomes "policy/NAME"
_OF_WEIGHTS = ("effective_samples", "squared_weight", "weight")  # where one needs "behaviour"


class _Means(dict):
    """The mean of every loss, by "policy/NAME"; of another name, KeyError says which there are."""

    def __missing__(self, key):
        raise KeyError(f"{key!r} is no loss; there are {', '.join(sorted(self))}")


def check_objective(
    objective: Any, name: str, others: Mapping[str, Objective], own: str = "objective"
) -> frozenset[str]:
    """See that an objective keeps to the shapes and types of `Objective`.

    Args:
      objective: what the user's class built.
      name: of that class, "module:Class".
      others: the objectives that stand beside it, whose names of losses and controls are taken.
      own: its name in `batch.own`.

    Returns:
      The names of all losses: its own, those of the others and "kl_old".

    Raises:
      ValueError: it is no `Objective`, one of its functions fails, cannot be differentiated or
        returns something else than it must, or two metrics would have one name; one line that names
        the class, the function and what is expected.
    """
    optional = ("init", "prepare", "reward", "observe", "adapt")
    trial.check_fields(objective, Objective, name, optional, names="needs")
    _check_top(objective.top, name)
    controls, losses = all_controls(objective, name, others), {"kl_old"}
    metrics = (*_METRICS, *(_OF_WEIGHTS if "behaviour" in objective.needs else ()))

    def run(key, live, batch, old, context, rollout):
        params = None
        if objective.init is not None:
            params = call_custom(name, "init", lambda: objective.init(key, _D))
            params = trial.check_params(params, name)
        if objective.prepare is not None:
            rows = call_custom(name, "prepare", lambda: objective.prepare(old, rollout))
            batch = batch.replace(own={own: trial.check_rows(rows, name, "prepare")})
        if objective.reward is not None:
            found = call_custom(name, "reward", lambda: objective.reward(old))
            trial.check_array(found, name, "reward", B=_B, R=_R)
        beside = _losses(others, live, batch, context, old, rollout)
        taken = beside.union(metrics, *(other.controls for other in others.values()))
        found = _check_terms(objective, name, (live, batch, context, params), taken)
        losses.update(beside, found)

    log_probs = trial.shape(_B, _R)
    top = trial.shape(_B, _R, objective.top) if objective.top else None
    live = Live(trial.shape(_B, _P + _R, _D), log_probs, log_probs, top)
    batch = _batch(objective)
    scalars = {key: trial.shape() for key in controls}
    old = Old(
        hidden=live.hidden,
        log_probs=log_probs,
        ref_log_probs=batch.ref_log_probs,
        mask=batch.mask,
        controls=scalars,
        expert_log_probs=log_probs if "expert" in objective.needs else None,
        heads=trial.shape(_B, _R, trial.HEADS) if "heads" in objective.needs else None,
    )
    context, rollout = Context(scalars, trial.shape()), trial.rollout(2, objective.needs)
    trial.trace(name, run, trial.keys(), live, batch, old, context, rollout)
    check_controls(objective, name, controls, losses, trial.on_host)
    return frozenset(losses)


def _check_top(top: Any, name: str) -> None:
    if isinstance(top, bool) or not isinstance(top, numbers.Integral) or top < 0:
        raise ValueError(f"{name}: top is {top!r}; it must be a whole number, at least 0")


def all_controls(
    objective: Objective, name: str, others: Mapping[str, Objective]
) -> dict[str, float]:
    """First values of all controls: the value units, those of `others` and the objective's own.

    Raises:
      ValueError: the objective's own are no finite numbers, or one has a name that is taken.
    """
    known = dict(VALUE_UNITS)
    for other in others.values():
        known |= other.controls
    if not isinstance(objective.controls, Mapping):
        raise ValueError(
            f"{name}: controls is {objective.controls!r}; it must be a mapping of numbers by name"
        )
    if taken := sorted(known.keys() & objective.controls.keys()):
        raise ValueError(
            f"{name}: controls has {taken[0]!r}, a name that is taken; taken are "
            f"{', '.join(sorted(known))}"
        )
    found = trial.check_numbers(objective.controls, name, "controls", objective.controls)
    return known | found


def check_controls(
    objective: Objective,
    name: str,
    controls: Mapping[str, float],
    losses: Iterable[str],
    call: Callable[..., Any],
) -> None:
    """Change the controls as a run does; without an update, the means of all losses are NaN.

    Args:
      objective: it may have `observe` and `adapt`.
      name: of the user's class.
      controls: all of them.
      losses: names of all losses, whose means there are.
      call: (name, function, call) -> its result.

    Raises:
      ValueError: a function fails, reads the mean of another loss or returns something else than
        finite numbers of known names.
    """
    if objective.observe is not None:
        found = call(name, "observe", lambda: objective.observe(dict(controls)))
        trial.check_numbers(found, name, "observe", controls)
    for mean in (0.1, math.nan) if objective.adapt is not None else ():
        means = _Means({f"policy/{loss}": mean for loss in losses})
        found = call(name, "adapt", functools.partial(objective.adapt, dict(controls), means))
        function = "adapt" if mean == mean else "adapt, with means of NaN as no update was made,"
        trial.check_numbers(found, name, function, controls)


def _check_terms(objective: Objective, name: str, inputs: tuple, taken: set[str]) -> set[str]:
    """Names of the objective's losses, none of which, nor of its controls, is taken."""
    live, batch, context, params = inputs
    names, there = set(), f"a name that is taken; taken are {', '.join(sorted(taken))}"

    def total(live: Live, params: Any) -> Array:
        found = call_custom(name, "terms", lambda: objective.terms(live, batch, context, params))
        trial.check_losses(found, name, "terms", masked=False)
        names.update(found)
        if same := sorted(taken & names):
            raise ValueError(f"{name}: terms returned a loss {same[0]!r}, {there}")
        return sum((jnp.sum(loss.per_token) for loss in found.values()), jnp.float32(0.0))

    differentiated = (0,) if params is None else (0, 1)
    call_custom(
        name, "the gradient of terms", lambda: jax.grad(total, differentiated)(live, params)
    )
    if same := sorted(taken & objective.controls.keys()):
        raise ValueError(f"{name}: controls has {same[0]!r}, {there}")
    if same := sorted(names & objective.controls.keys()):
        raise ValueError(
            f"{name}: controls has {same[0]!r}, and terms returned a loss of that name; both would "
            f"be the metric 'policy/{same[0]}'"
        )
    return names


def _losses(
    others: Mapping[str, Objective],
    live: Live,
    batch: Batch,
    context: Context,
    old: Old,
    rollout: Rollout,
) -> set[str]:
    """Names of the losses that stand beside the objective's, which get all that they need."""
    per_token = batch.old_log_probs
    names = set()
    for name, other in others.items():
        full = batch.replace(ref_log_probs=per_token, behaviour_log_probs=per_token)
        if other.prepare is not None:
            heads = jnp.zeros((_B, _R, trial.HEADS))
            all_old = old._replace(ref_log_probs=per_token, expert_log_probs=per_token, heads=heads)
            expert = Expert(rollout.tokens, rollout.mask)
            everything = rollout.replace(expert=expert, baseline=rollout.rewards)
            full = full.replace(own={name: other.prepare(all_old, everything)})
        names.update(other.terms(live, full, context, None))
    return names


def _batch(objective: Objective) -> Batch:
    per_token, needs, top = trial.shape(_B, _R), objective.needs, objective.top
    return Batch(
        row=trial.shape(_B, dtype=jnp.int32),
        sequence=trial.shape(_B, _P + _R, dtype=jnp.int32),
        valid=trial.shape(_B, _P + _R),
        tokens=trial.shape(_B, _R, dtype=jnp.int32),
        mask=per_token,
        old_log_probs=per_token,
        ref_log_probs=per_token if "reference" in needs else None,
        behaviour_log_probs=per_token if "behaviour" in needs else None,
        top_tokens=trial.shape(_B, _R, top, dtype=jnp.int32) if top else None,
        top_log_probs=trial.shape(_B, _R, top) if top else None,
        importance=per_token,
        advantages=per_token,
    )
