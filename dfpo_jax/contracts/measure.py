"""Small random rollouts, and how results on them are compared."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dfpo_jax import ops
from dfpo_jax.settings import call_custom
from dfpo_jax.types import Array, ArrayTree, Expert, Loss, Rollout

MASK = np.array(
    [
        [1, 1, 1, 1, 1],  # full; the return goes on behind it
        [1, 0, 1, 1, 0],  # a gap; the return goes on behind it
        [0, 1, 1, 1, 0],  # starts late
        [1, 0, 0, 0, 0],  # one token
        [0, 0, 0, 0, 0],  # none, though it is marked as going on
        [1, 1, 1, 1, 1],
    ],
    np.float32,
)
BOOTSTRAP = np.array([1, 1, 0, 0, 1, 0], bool)
STATES = np.concatenate([MASK, np.zeros((len(MASK), 1), np.float32)], axis=1)
"""[B, R + 1], 1 on states that mean something: before tokens, and those that rows 0 and 1 go on
from."""
STATES[0, 5] = STATES[1, 4] = 1
B, R = MASK.shape
P, D = 3, 8
DISCOUNT = 0.9
JUNK = 7.0
_PROMPT = np.array([[0, 1, 1], [1, 1, 1], [0, 0, 1], [1, 1, 1], [0, 1, 1], [0, 1, 1]], np.float32)
PIECE = slice(1, None)  # the batch without its first row


def built(settings: Any, check: Callable[[Any, str], Any], *inputs: Any) -> tuple[str, Any]:
    """The name of the settings' class, and the part that they build, with the right shapes.

    Args:
      settings: of the part.
      check: (part, name) -> anything; raises ValueError.
      *inputs: of `build`.

    Raises:
      AssertionError: what `build` or the check raised.
    """
    name = type(settings).__name__
    part = asserted(lambda: call_custom(name, "build", lambda: settings.build(*inputs)))
    asserted(lambda: check(part, name))
    return name, part


def asserted(call: Callable[[], Any]) -> Any:
    """The result of a call, whose ValueError becomes an AssertionError."""
    try:
        return call()
    except ValueError as error:
        raise AssertionError(str(error)) from error


def require(right: Any, name: str, sentence: str) -> None:
    """Raise AssertionError with the part's name and the sentence unless it is right."""
    if not right:
        raise AssertionError(f"{name}: {sentence}")


def only(mask: np.ndarray, x: Any, junk: float = JUNK) -> np.ndarray:
    """`x` where the mask of its leading axes is 1, and junk elsewhere."""
    x = np.asarray(x)
    mask = np.reshape(mask, mask.shape + (1,) * (x.ndim - mask.ndim))
    return np.where(mask > 0, x, np.asarray(junk, x.dtype))


def same(first: Any, second: Any, mask: np.ndarray) -> bool:
    """Whether two arrays are equal up to rounding where the mask of their leading axes is 1."""
    return np.allclose(only(mask, first), only(mask, second), rtol=1e-4, atol=1e-5)


def noisy(params: ArrayTree, random: np.random.Generator) -> ArrayTree:
    """Parameters without boxes, with noise: a head that starts at 0 would hide mistakes."""

    def one(x):
        return (np.asarray(x) + 0.3 * random.normal(size=x.shape)).astype(np.float32)

    return jax.tree.map(one, nn.unbox(params))


def rollout(random: np.random.Generator) -> Rollout:
    """Random prompts, responses and rewards, two responses to each prompt."""
    rewards = random.uniform(size=B).astype(np.float32)
    return Rollout(
        prompt_tokens=random.integers(0, 9, (B, P)).astype(np.int32),
        prompt_mask=_PROMPT,
        tokens=random.integers(0, 9, (B, R)).astype(np.int32),
        mask=MASK,
        log_probs=-random.uniform(1.0, 3.0, (B, R)).astype(np.float32),
        truncated=BOOTSTRAP,
        rewards=rewards,
        clean_rewards=rewards,
        groups=(np.arange(B) // 2).astype(np.int32),
        baseline=random.uniform(size=B).astype(np.float32),
        expert=Expert(random.integers(0, 9, (B, R)).astype(np.int32), MASK[::-1]),
        samples=2,
    )


def with_junk(rollout: Rollout) -> Rollout:
    """The rollout with other values where there is no token."""
    return rollout.replace(
        prompt_tokens=only(_PROMPT, rollout.prompt_tokens),
        tokens=only(MASK, rollout.tokens),
        log_probs=only(MASK, rollout.log_probs),
    )


def evaluate(
    losses: Callable[[Mapping[str, Any], slice], dict[str, Loss]],
    inputs: Mapping[str, Any],
    mask: Array,
) -> dict[str, Any]:
    """Losses of all rows and of a piece of them, and gradients of those that are no metrics.

    Args:
      losses: (inputs, rows) -> losses of these rows.
      inputs: by name, what is differentiated.
      mask: [B, R], of losses that have none of their own.

    Returns:
      "losses" and "masks" of all rows and "piece", the losses of the rows of `PIECE`, by name;
      "gradients" by path in the inputs, of every array of floats.
    """
    flat, tree = jax.tree_util.tree_flatten_with_path(inputs)
    named = [(jax.tree_util.keystr(p, simple=True, separator="."), x) for p, x in flat]
    floats = {path: x for path, x in named if jnp.issubdtype(x.dtype, jnp.floating)}

    def masked(loss):
        return mask if loss.mask is None else loss.mask

    def total(floats):
        found = losses(tree.unflatten([floats.get(path, x) for path, x in named]), slice(None))
        sums = [
            ops.masked_sum_and_count(loss.per_token, masked(loss))[0]
            for loss in found.values()
            if not (isinstance(loss.weight, float) and loss.weight == 0.0)
        ]
        return sum(sums, jnp.float32(0.0)), found

    gradients, found = jax.grad(total, has_aux=True)(floats)
    return {
        "losses": {name: loss.per_token for name, loss in found.items()},
        "masks": {name: masked(loss) for name, loss in found.items()},
        "piece": {name: loss.per_token for name, loss in losses(inputs, PIECE).items()},
        "gradients": gradients,
    }


def check_finite(name: str, found: Mapping[str, Any]) -> None:
    """Require that everything is finite."""
    for key, value in found.items():
        finite = all(np.isfinite(x).all() for x in jax.tree.leaves(value))
        require(finite, name, f"{key} must be finite, outside the mask and in empty rows too")


def check_split(name: str, found: Mapping[str, Any]) -> None:
    """Require that every loss is the same when a batch is split."""
    for key, loss in found["losses"].items():
        require(
            same(loss[PIECE], found["piece"][key], found["masks"][key][PIECE]),
            name,
            f"the loss {key!r} must be the same when the batch is split; row b may depend on row b "
            "alone",
        )


def check_stopped(name: str, gradients: Mapping[str, Any], *stopped: str) -> None:
    """Require that no gradient reaches these inputs."""
    for path, gradient in gradients.items():
        require(
            path.partition(".")[0] not in stopped or not np.any(gradient),
            name,
            f"no gradient may reach {' and '.join(stopped)}, and one reaches {path}; use "
            "jax.lax.stop_gradient",
        )


def check_junk(name: str, what: str, first: Any, second: Any, mask: Any = MASK) -> None:
    """Require that a result inside a mask is the same with junk outside of it."""
    require(
        same(first, second, np.asarray(mask)),
        name,
        f"{what} must not change with what lies outside the mask or in empty rows",
    )


def check_losses_junk(name: str, found: Mapping[str, Any], junk: Mapping[str, Any]) -> None:
    """Require that masks and losses are the same with junk outside the mask."""
    for key, mask in found["masks"].items():
        check_junk(name, f"the mask of the loss {key!r}", mask, junk["masks"][key])
        check_junk(name, f"the loss {key!r}", found["losses"][key], junk["losses"][key], mask)
