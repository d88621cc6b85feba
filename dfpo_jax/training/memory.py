"""Programs that are checked against the memory of their devices before they run."""

from collections.abc import Callable
from typing import Any

import jax

ADVICE = (
    "raise train.minibatches or train.microbatches, set model.remat to 'full', set critic.trunk to "
    "'detached', or lower sampling.max_new_tokens, train.prompt_length or train.prompts"
)


def free_bytes(device: jax.Device) -> int | None:
    """Memory of a device that no array occupies, or None where the device does not say."""
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return None
    return stats["bytes_limit"] - stats["bytes_in_use"]


class Checked:
    """A jitted function that compiles ahead of its first call and refuses to run out of memory.

    Each combination of shapes and shardings compiles once, as with `jax.jit`; the compiled program
    says what it needs beyond its arguments, before it touches a device.

    Args:
      name: of the function, for the message.
      jitted: from `jax.jit`.
    """

    def __init__(self, name: str, jitted: Callable[..., Any]):
        """Nothing compiles before the first call."""
        self.jitted, self._name, self._programs = jitted, name, {}

    def __call__(self, *arguments: Any) -> Any:
        """Call it.

        Raises:
          MemoryError: the program needs more than a device has free; names both and the settings
            that would make it fit.
        """
        leaves, structure = jax.tree.flatten(arguments)
        key = (structure, tuple((x.shape, x.dtype, x.sharding) for x in leaves))
        if key not in self._programs:
            program = self.jitted.lower(*arguments).compile()
            self._check(program.memory_analysis(), leaves[0].sharding.addressable_devices)
            self._programs[key] = program
        return self._programs[key](*arguments)

    def _check(self, analysis: Any, devices: set[jax.Device]) -> None:
        if analysis is None:
            return
        needed = (
            analysis.temp_size_in_bytes
            + analysis.output_size_in_bytes
            - analysis.alias_size_in_bytes
        )
        for device in devices:
            free = free_bytes(device)
            if free is not None and needed > free:
                raise MemoryError(
                    f"{self._name} needs {needed / 2**30:.2f} GiB and {device} has "
                    f"{free / 2**30:.2f} GiB free; {ADVICE}"
                )
