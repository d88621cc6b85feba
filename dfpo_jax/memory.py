"""Programs that are checked against the memory of their devices before they run."""

import weakref
from collections.abc import Callable
from typing import Any

import jax


def free_bytes(device: jax.Device) -> int | None:
    """Memory of a device that no array occupies, or None where the device does not say."""
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return None
    return stats["bytes_limit"] - stats["bytes_in_use"]


def needed_bytes(analysis: Any) -> int:
    """What a compiled program takes beside its arguments, from its `memory_analysis()`."""
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return analysis.temp_size_in_bytes + results


class Checked:
    """A jitted function that compiles ahead of its first call and refuses to run out of memory.

    Each combination of shapes and shardings compiles once, as with `jax.jit`; the compiled program
    says what it needs beyond its arguments, before it touches a device.

    Args:
      name: of the function, for the message.
      jitted: from `jax.jit`.
      advice: for the message, what to do about it.
    """

    def __init__(self, name: str, jitted: Callable[..., Any], advice: str):
        """Nothing compiles before the first call."""
        self.jitted, self._name, self._advice, self._programs = jitted, name, advice, {}
        _ALL.add(self)

    def __call__(self, *arguments: Any, **static: Any) -> Any:
        """Call it with arrays, and by name with what the jitted function takes as static.

        Raises:
          MemoryError: the program needs more than a device has free; names both and the settings
            that would make it fit.
        """
        leaves, structure = jax.tree.flatten(arguments)
        shapes = tuple((x.shape, x.dtype, getattr(x, "sharding", None)) for x in leaves)
        key = (structure, shapes, tuple(static.items()))
        if key not in self._programs:
            program = self.jitted.lower(*arguments, **static).compile()
            places = jax.tree.leaves(program.output_shardings)
            self._check(program.memory_analysis(), places[0].addressable_devices)
            self._programs[key] = program
        return self._programs[key](*arguments)

    def _check(self, analysis: Any, devices: set[jax.Device]) -> None:
        if analysis is None:
            return
        needed = needed_bytes(analysis)
        for device in devices:
            free = free_bytes(device)
            if free is not None and needed > free:
                raise MemoryError(
                    f"{self._name} needs {needed / 2**30:.2f} GiB and {device} has "
                    f"{free / 2**30:.2f} GiB free; {self._advice}"
                )


_ALL: weakref.WeakSet[Checked] = weakref.WeakSet()


def clear_caches() -> None:
    """`jax.clear_caches`, and of the programs that are kept here."""
    jax.clear_caches()
    for checked in _ALL:
        checked._programs.clear()
