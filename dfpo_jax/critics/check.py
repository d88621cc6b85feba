"""Checks a critic of the user's own by tracing it on small shapes, before anything compiles."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from dfpo_jax import trial
from dfpo_jax.critics.interface import Critic
from dfpo_jax.settings import call_custom
from dfpo_jax.types import Array, ArrayTree

_B, _R, _D = (trial.SIZES[letter] for letter in "BRD")
_TIMES = (_R + 1, _R, 1)  # how many states the library has read at once


def check_critic(critic: Any, name: str) -> None:
    """See that a critic keeps to the shapes and types of `Critic`.

    Args:
      critic: what the user's class built.
      name: of that class, "module:Class".

    Raises:
      ValueError: it is no `Critic`, one of its functions fails, cannot be differentiated or returns
        something else than it must; one line that names the class, the function and what is
        expected.
    """
    trial.check_fields(critic, Critic, name, optional=("paths", "heads"), names="gives")
    if "heads" in critic.gives and critic.heads is None:
        raise ValueError(f"{name}: gives has 'heads', and heads is None; it must be a function")

    def run(key, states, steps, per_row, keys):
        params = call_custom(name, "init", lambda: critic.init(key, _D))
        params = trial.check_params(params, name)
        reading = _check_readings(critic, name, params, states)
        for lambda_ in (0.95, per_row):
            inputs = (key, reading, steps, lambda_)
            found = call_custom(name, "returns", functools.partial(critic.returns, *inputs))
            trial.check_array(found, name, "returns", B=_B, R=_R, S=None)
            rows = call_custom(name, "targets", functools.partial(critic.targets, *inputs))
            trial.check_rows(rows, name, "targets")
        _check_losses(critic, name, params, states, rows, keys)

    states, steps = trial.shape(_B, _R + 1, _D), trial.steps()
    trial.trace(name, run, trial.keys(), states, steps, trial.shape(_B), trial.keys(_B))


def _check_readings(critic: Critic, name: str, params: ArrayTree, states: Array) -> Any:
    """The reading of all states, once those of any number of states have been checked."""
    quantiles, readings = None, []
    for time in _TIMES:
        read = functools.partial(critic.read, params, states[:, :time])
        readings.append(call_custom(name, "read", read))
        law = call_custom(name, "law", functools.partial(critic.law, readings[-1]))
        law = trial.check_array(law, name, "law", B=_B, T=time, M=quantiles)
        quantiles = law.shape[-1]
        if critic.paths is not None:
            paths = call_custom(name, "paths", functools.partial(critic.paths, readings[-1]))
            trial.check_array(paths, name, "paths", times=17, B=_B, T=time, M=None)
        if critic.heads is not None:
            heads = call_custom(name, "heads", functools.partial(critic.heads, readings[-1]))
            trial.check_array(heads, name, "heads", B=_B, T=time, N=None)
    if "law" in critic.gives and quantiles == 1:
        raise ValueError(
            f"{name}: gives has 'law', and law returned {law.dtype} {law.shape}; one quantile is "
            "no distribution, so gives must be frozenset({'value'}) or law return several"
        )
    return readings[0]


def _check_losses(
    critic: Critic, name: str, params: ArrayTree, states: Array, rows: Any, keys: Array
) -> None:
    old = jax.lax.stop_gradient(params)

    def total(params: ArrayTree, states: Array) -> Array:
        found = call_custom(name, "losses", lambda: critic.losses(params, states, rows, old, keys))
        trial.check_losses(found, name, "losses", masked=True)
        if not found:
            raise ValueError(f"{name}: losses returned no loss; there must be at least one")
        return sum(jnp.sum(loss.per_token) for loss in found.values())

    call_custom(
        name, "the gradient of losses", lambda: jax.grad(total, argnums=(0, 1))(params, states)
    )
