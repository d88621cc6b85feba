"""Compiles programs ahead of time, with the options of their devices, and checks their memory."""

import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax

_LOG = logging.getLogger(__name__)

_OPTIONS = {
    "cpu": {"xla_cpu_prefer_vector_width": "512"},
    "tpu": {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"},
}


def free_bytes(device: jax.Device) -> int | None:
    """Free memory of a device in bytes, or None if nothing is known of it.

    CPU devices share what is free on the host; without this the system would kill a program that
    does not fit.
    """
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    if device.platform != "cpu":
        return None
    free = host_free_bytes()
    return None if free is None else free // jax.local_device_count()


def host_free_bytes(root: Path = Path("/")) -> int | None:
    """Memory that this process can still get, in bytes; None on systems that do not say.

    The least of what Linux could free ("MemAvailable") and of what is left in the control groups
    (version 2) that the process is in, whose file cache counts as free.

    Args:
      root: where `proc` and `sys` are.
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        fields = dict(line.split(":") for line in lines)
        found = [int(fields["MemAvailable"].split()[0]) * 1024]
        group = (root / "proc/self/cgroup").read_text().strip().rpartition("::")[2]
    except (OSError, KeyError, ValueError):
        return None
    top = root / "sys/fs/cgroup"
    place = top / group.strip("/")
    for directory in (place, *place.parents):
        if not directory.is_relative_to(top):
            break
        try:
            limit = (directory / "memory.max").read_text().strip()
            used = int((directory / "memory.current").read_text())
            stat = dict(x.split() for x in (directory / "memory.stat").read_text().splitlines())
            if limit != "max":
                found.append(int(limit) - used + int(stat.get("inactive_file", 0)))
        except (OSError, ValueError):
            continue
    return max(min(found), 0)


def needed_bytes(analysis: Any) -> int:
    """Bytes that a compiled program needs besides its arguments, from `memory_analysis()`."""
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return analysis.temp_size_in_bytes + results


def compiler_options(devices: Iterable[jax.Device]) -> dict[str, str]:
    """What XLA is told about programs of this library, unless XLA_FLAGS says it.

    CPUs: registers of 512 bits where there are any, instead of the halves that XLA prefers.

    TPUs: where a product's operand is gathered, XLA computes it window by window, to hide the
    communication. Every window then reads the other operand, or adds to the whole result, in the
    chip's memory once more, which made that memory the bound of preparation and train step. Gathers
    are asynchronous without windows too.

    Args:
      devices: all of one platform.
    """
    options = _OPTIONS.get(next(iter(devices)).platform, {})
    asked = os.environ.get("XLA_FLAGS", "")
    return {name: value for name, value in options.items() if name not in asked}


def compiled(
    lowered: jax.stages.Lowered, devices: Iterable[jax.Device], **more: Any
) -> jax.stages.Compiled:
    """The program, compiled with the options of its devices, or without where XLA knows them not.

    Args:
      lowered: the program.
      devices: where it runs.
      more: options of the caller's own.
    """
    options = compiler_options(devices)
    try:
        return lowered.compile(options | more)
    except jax.errors.JaxRuntimeError as error:
        if not options or "No such compile option" not in str(error):
            raise
        _LOG.warning("this compiler does not know %s; compiling without", ", ".join(options))
        return lowered.compile(more)


class Checked:
    """A jitted function that refuses to run if it needs more memory than is free.

    Each combination of shapes and shardings compiles once, as with `jax.jit`. The memory of the
    compiled program is checked before it runs.

    Args:
      name: name of the function, for the message.
      jitted: from `jax.jit`.
      advice: the end of the message: how to need less memory.
    """

    def __init__(self, name: str, jitted: Callable[..., Any], advice: str):
        """Compiles nothing."""
        self.jitted, self._name, self._advice = jitted, name, advice
        self._programs: dict[Any, jax.stages.Compiled] = {}
        self._fitting: set[Any] = set()  # keys of programs whose memory was checked
        self._compiling = threading.Lock()
        _ALL.add(self)

    def __call__(self, *arguments: Any, **static: Any) -> Any:
        """Call with arrays, and with the jitted function's static arguments by name.

        Raises:
          MemoryError: the program needs more memory than a device has free; gives both figures and
            the advice.
        """
        key, program = self._program(arguments, static)
        if key not in self._fitting:
            places = jax.tree.leaves(program.output_shardings)
            self._check(program.memory_analysis(), places[0].addressable_devices)
            self._fitting.add(key)
        return program(*arguments)

    def ahead(self, *arguments: Any, **static: Any) -> jax.stages.Compiled:
        """The program for arguments of these shapes and shardings, which need not exist yet.

        A call in another thread waits for it. Its memory is checked when it is first called.

        Args:
          arguments: `jax.ShapeDtypeStruct`s stand for arrays.
          static: as in a call.
        """
        return self._program(arguments, static)[1]

    def _program(self, arguments: tuple, static: dict[str, Any]) -> tuple[Any, jax.stages.Compiled]:
        leaves, structure = jax.tree.flatten(arguments)
        shapes = tuple((x.shape, x.dtype, getattr(x, "sharding", None)) for x in leaves)
        key = (structure, shapes, tuple(static.items()))
        with self._compiling:
            if key not in self._programs:
                lowered = self.jitted.lower(*arguments, **static)
                self._programs[key] = compiled(lowered, _devices(leaves))
            return key, self._programs[key]

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


def _devices(leaves: list[Any]) -> Iterable[jax.Device]:
    """Where a program runs with these arguments."""
    found = (x.sharding.device_set for x in leaves if hasattr(x, "sharding"))
    return next(found, jax.devices())


_ALL: weakref.WeakSet[Checked] = weakref.WeakSet()


def clear_caches() -> None:
    """`jax.clear_caches`, also for the programs of every `Checked`."""
    jax.clear_caches()
    for checked in _ALL:
        checked._programs.clear()
