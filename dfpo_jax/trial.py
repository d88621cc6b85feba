"""What the checks of critics, advantages and objectives share: they trace a part on small shapes.

Nothing is computed and no device is touched, so that a check may run before processes connect.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dfpo_jax.settings import call_custom
from dfpo_jax.types import Array, ArrayTree, Loss, Rollout, Steps, rollout_of

SIZES = {"B": 2, "R": 3, "P": 2, "D": 8}
"""Sequences, response slots, prompt slots and width of the states in a trial."""
HEADS = 3
"""Heads of a critic in a trial."""
_NEEDS_A_DEVICE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
_B, _R, _P, _D = SIZES.values()


def shape(*sizes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    """An array that has a shape and a type only."""
    return jax.ShapeDtypeStruct(sizes, dtype)


def keys(*sizes: int) -> jax.ShapeDtypeStruct:
    """PRNG keys."""
    return jax.eval_shape(lambda: jnp.broadcast_to(jax.random.key(0), sizes))


def steps() -> Steps:
    """The token MDP of a trial."""
    return Steps(shape(_B, _R), shape(_B, _R), shape(_B, dtype=bool))


def rollout(samples: int, needs: frozenset[str]) -> Rollout:
    """The rollout of a trial, with what is needed."""
    return rollout_of(jax.ShapeDtypeStruct, _B, _P, _R, samples=samples, gives=needs)


def trace(name: str, function: Callable, *inputs: Any) -> Any:
    """Shapes that a function returns; what a part raised in it is one line already."""
    return call_custom(name, "tracing it", lambda: jax.eval_shape(function, *inputs))


def on_host(name: str, function: str, call: Callable[[], Any]) -> Any:
    """What a function between iterations returns; {} where that takes a device to say.

    Numbers that come from JAX are tracers.
    """
    found = []

    def run():
        try:
            found.append(call())
        except _NEEDS_A_DEVICE:
            found.append({})

    call_custom(name, function, lambda: jax.eval_shape(run))
    return found[0]


def check_fields(part: Any, kind: type, name: str, optional: tuple[str, ...], names: str) -> None:
    """Raise ValueError unless a part is of its kind, has every function and a set of names.

    Args:
      part: what the user's class built.
      kind: `Critic`, `Advantage` or `Objective`, whose annotations say what is a function.
      name: of the user's class, "module:Class".
      optional: functions that may be None.
      names: the field that is a set of names.
    """
    if not isinstance(part, kind):
        raise ValueError(
            f"{name}: build returned {type(part).__name__}; it must return a "
            f"{kind.__module__}.{kind.__name__}"
        )
    for field, hint in kind.__annotations__.items():
        value = getattr(part, field)
        if "Callable" not in str(hint) or (value is None and field in optional):
            continue
        if not callable(value):
            raise ValueError(f"{name}: {field} is {value!r}; it must be a function")
    found = getattr(part, names)
    if not isinstance(found, frozenset) or not all(isinstance(x, str) for x in found):
        raise ValueError(f"{name}: {names} is {found!r}; it must be a frozenset of names")


def check_array(found: Any, name: str, function: str, what: str = "", **axes: int | None) -> Array:
    """The array that a function of a part returned.

    Args:
      found: what it returned.
      name: of the user's class.
      function: of the part.
      what: which part of what it returned, such as " as per_token of 'loss'".
      **axes: the size of every axis by its letter; None for any.

    Raises:
      ValueError: it is no array of floats of that shape; one line.
    """
    right = _is_array(found) and len(found.shape) == len(axes)
    right = right and jnp.issubdtype(found.dtype, jnp.floating)
    sizes = list(axes.values())
    if not (right and all(w in (None, n) for n, w in zip(found.shape, sizes, strict=True))):
        here = ", ".join(letter if size is None else str(size) for letter, size in axes.items())
        raise ValueError(
            f"{name}: {function} returned {_described(found)}{what}; it must return floats "
            f"[{', '.join(axes)}] (here ({here}))"
        )
    return found


def check_params(found: ArrayTree, name: str, function: str = "init") -> ArrayTree:
    """Parameters without boxes; raise ValueError where a leaf is no array of floats."""
    found = nn.unbox(found)
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        if not (_is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating)):
            raise ValueError(
                f"{name}: {function} returned {_described(leaf)} at "
                f"{jax.tree_util.keystr(path) or 'its root'}; parameters must be arrays of floats"
            )
    return found


def check_rows(found: Any, name: str, function: str) -> Any:
    """A pytree of rows; raise ValueError where a leaf has no leading axis of the batch."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        if not _is_array(leaf) or leaf.shape[:1] != (_B,):
            raise ValueError(
                f"{name}: {function} returned {_described(leaf)} at "
                f"{jax.tree_util.keystr(path) or 'its root'}; every leaf must be an array with "
                f"leading axis B (here {_B})"
            )
    return found


def check_losses(found: Any, name: str, function: str, masked: bool) -> dict[str, Loss]:
    """Losses by name.

    Args:
      found: what the function returned.
      name: of the user's class.
      function: of the part.
      masked: whether a loss may have a mask of its own.

    Raises:
      ValueError: it is no dict of `Loss`, or one has another shape or weight than it must.
    """
    wanted = "it must return a dict of dfpo_jax.types.Loss by name"
    if not isinstance(found, dict):
        raise ValueError(f"{name}: {function} returned {_described(found)}; {wanted}")
    for key, loss in found.items():
        if not isinstance(key, str) or not isinstance(loss, Loss):
            raise ValueError(f"{name}: {function} returned {_described(loss)} as {key!r}; {wanted}")
        check_array(loss.per_token, name, function, f" as per_token of {key!r}", B=_B, R=_R)
        if loss.mask is not None and not masked:
            raise ValueError(
                f"{name}: {function} returned a mask of {key!r}; it must be None, as losses of the "
                "policy count on the mask of the batch"
            )
        if loss.mask is not None:
            check_array(loss.mask, name, function, f" as mask of {key!r}", B=_B, R=_R)
        if not isinstance(loss.weight, float):
            scalar = _is_array(loss.weight) and loss.weight.shape == ()
            if not scalar or not jnp.issubdtype(loss.weight.dtype, jnp.floating):
                raise ValueError(
                    f"{name}: {function} returned {_described(loss.weight)} as weight of {key!r}; "
                    "it must be a float or an array of floats []"
                )
    return found


def check_numbers(found: Any, name: str, function: str, known: Mapping[str, float]) -> dict:
    """Controls that a function of a part returned, which must be finite numbers of known names."""
    wanted = f"it must return finite numbers by name, of {', '.join(sorted(known))}"
    if not isinstance(found, Mapping):
        raise ValueError(f"{name}: {function} returned {_described(found)}; {wanted}")
    for key, value in found.items():
        if key not in known or not _is_finite(value):
            raise ValueError(f"{name}: {function} returned {value!r} for {key!r}; {wanted}")
    return dict(found)


def _is_array(x: Any) -> bool:
    return hasattr(x, "shape") and hasattr(x, "dtype")


def _is_finite(x: Any) -> bool:
    if isinstance(x, jax.core.Tracer):
        return x.shape == ()
    try:
        return not isinstance(x, str) and math.isfinite(x)
    except (TypeError, ValueError):
        return False


def _described(x: Any) -> str:
    """ "float32 (2, 3)" of an array, the name of any other type."""
    return f"{x.dtype} {tuple(x.shape)}" if _is_array(x) else type(x).__name__
