"""LoRA: low-rank updates of the decoder's kernels, trained in place of the kernels themselves.

Hu et al. 2021 (arXiv 2106.09685), section 4.1: a layer computes x W + (alpha / rank) (x A) B. W
does not train; A [inputs, rank] and B [rank, outputs] do. B starts at 0, so the adapted model
starts equal to the original. `transformer.Projection` computes this. This file has its settings and
functions of parameter trees (nested dictionaries, boxed or not).
"""

from dataclasses import dataclass

import flax.traverse_util
import jax
import jax.numpy as jnp

from dfpo_jax.types import Array, ArrayTree

TARGETS = ("query", "key", "value", "output", "gate", "up", "down")
A, B = "lora_a", "lora_b"


@dataclass(frozen=True)
class LoraConfig:
    """Settings of LoRA: which kernels have a low-rank update, and how large it is.

    Attributes:
      rank: columns of A and rows of B; 0 switches LoRA off and trains the model itself.
      alpha: the update (x A) B is multiplied by alpha / rank.
      targets: projections of attention ("query", "key", "value", "output") and MLP ("gate", "up",
        "down") that have one; all by default.

    Raises:
      ValueError: a field is out of range; the message names field, value and what is allowed.
    """

    rank: int = 0
    alpha: float = 16.0
    targets: tuple[str, ...] = TARGETS

    def __post_init__(self):
        """Validates every field."""
        if type(self.rank) is not int or self.rank < 0:
            raise ValueError(f"rank is {self.rank!r}; it must be 0 (off) or a positive integer")
        if type(self.alpha) not in (int, float) or not self.alpha > 0:
            raise ValueError(f"alpha is {self.alpha!r}; it must be a number above 0")
        known = isinstance(self.targets, tuple | list) and all(x in TARGETS for x in self.targets)
        if not known:
            raise ValueError(
                f"targets is {self.targets!r}; it must be a tuple of some of {', '.join(TARGETS)}"
            )
        object.__setattr__(self, "targets", tuple(self.targets))  # a list could not be hashed
        if self.rank > 0 and not self.targets:
            raise ValueError(
                f"targets is () and rank {self.rank}; it must have some of {', '.join(TARGETS)}"
            )

    @property
    def scale(self) -> float:
        """The factor of (x A) B."""
        return self.alpha / self.rank


def split(params: ArrayTree) -> tuple[ArrayTree, ArrayTree]:
    """Splits a decoder's parameters into those that train and those that LoRA freezes.

    The first tree has exactly the LoRA leaves, and the second all others. Without LoRA leaves the
    first tree has all leaves and the second is empty.
    """
    flat = flax.traverse_util.flatten_dict(params)
    trained = {path: leaf for path, leaf in flat.items() if path[-1] in (A, B)}
    if not trained:
        return params, {}
    frozen = {path: leaf for path, leaf in flat.items() if path not in trained}
    return flax.traverse_util.unflatten_dict(trained), flax.traverse_util.unflatten_dict(frozen)


def join(trained: ArrayTree, frozen: ArrayTree) -> ArrayTree:
    """Merges two trees; undoes `split`.

    Raises:
      ValueError: a leaf is in both trees; names it.
    """
    first, second = (flax.traverse_util.flatten_dict(tree) for tree in (trained, frozen))
    if both := sorted("/".join(path) for path in first.keys() & second.keys()):
        raise ValueError(f"both trees have {', '.join(both)}")
    return flax.traverse_util.unflatten_dict(first | second)


def fold(params: ArrayTree, config: LoraConfig) -> ArrayTree:
    """Adds the updates to the kernels, which gives parameters of the same model without LoRA.

    A kernel becomes W + (alpha / rank) A B, computed in float32 and stored in the kernel's type. A
    tree without LoRA leaves is returned unchanged.
    """
    flat = flax.traverse_util.flatten_dict(params)
    for module in [path[:-1] for path in flat if path[-1] == A]:
        a, b = flat.pop((*module, A)), flat.pop((*module, B))
        flat[*module, "kernel"] = _folded(flat[*module, "kernel"], a, b, config.scale)
    return flax.traverse_util.unflatten_dict(flat)


def _folded(kernel: Array, a: Array, b: Array, scale: float) -> Array:
    """[*stack, *inputs, *outputs], [*stack, *inputs, rank], [*stack, rank, *outputs] -> kernel."""
    stack = a.ndim + b.ndim - 2 - kernel.ndim
    batch = tuple(range(stack))
    update = jax.lax.dot_general(
        a.astype(jnp.float32),
        b.astype(jnp.float32),
        (((a.ndim - 1,), (stack,)), (batch, batch)),
        precision=jax.lax.Precision.HIGHEST,
    )
    return (kernel.astype(jnp.float32) + scale * update).astype(kernel.dtype)
