"""Checks an objective of the user's own by tracing it on small shapes, before anything compiles."""

import functools
import math
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
    controls, losses = all_controls(objective, name, others), {"kl_old"}
    scalars = {key: trial.shape() for key in controls}
    context = Context(scalars, trial.shape())
    beside = _losses(others, context, scalars)

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
        taken = beside.union(_METRICS, *(other.controls for other in others.values()))
        found = _check_terms(objective, name, (live, batch, context, params), taken)
        losses.update(beside, found)

    live, batch, old, rollout = _inputs(objective, scalars)
    trial.trace(name, run, trial.keys(), live, batch, old, context, rollout)
    check_controls(objective, name, controls, losses, trial.on_host)
    return frozenset(losses)


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
    others: Mapping[str, Objective], context: Context, controls: Mapping[str, Array]
) -> set[str]:
    """Names of the losses that stand beside the objective's."""
    names = set()
    for key, other in others.items():

        def run(live, batch, old, context, rollout, key=key, other=other):
            if other.prepare is not None:
                batch = batch.replace(own={key: other.prepare(old, rollout)})
            names.update(other.terms(live, batch, context, None))

        live, batch, old, rollout = _inputs(other, controls)
        jax.eval_shape(run, live, batch, old, context, rollout)
    return names


def _inputs(
    objective: Objective, controls: Mapping[str, Array]
) -> tuple[Live, Batch, Old, Rollout]:
    """What an objective is traced with: everything that it needs, and nothing else that it may."""
    per_token, per_state = trial.shape(_B, _R), trial.shape(_B, _P + _R)
    top = trial.shape(_B, _R, objective.top) if objective.top else None

    def needed(name: str, value: Any) -> Any:
        return value if name in objective.needs else None

    batch = Batch(
        row=trial.shape(_B, dtype=jnp.int32),
        sequence=trial.shape(_B, _P + _R, dtype=jnp.int32),
        valid=per_state,
        tokens=trial.shape(_B, _R, dtype=jnp.int32),
        mask=per_token,
        old_log_probs=per_token,
        ref_log_probs=needed("reference", per_token),
        behaviour_log_probs=needed("behaviour", per_token),
        top_tokens=top and trial.shape(*top.shape, dtype=jnp.int32),
        top_log_probs=top,
        importance=per_token,
        advantages=per_token,
    )
    live = Live(trial.shape(_B, _P + _R, _D), per_token, per_token, top)
    old = Old(
        live.hidden,
        per_token,
        batch.ref_log_probs,
        per_token,
        controls,
        expert_log_probs=needed("expert", per_token),
        heads=needed("heads", trial.shape(_B, _R, 2)),
    )
    expert = Expert(trial.shape(_B, _R, dtype=jnp.int32), per_token)
    rollout = trial.rollout(2).replace(
        expert=needed("expert", expert), baseline=needed("pool", trial.shape(_B))
    )
    return live, batch, old, rollout
