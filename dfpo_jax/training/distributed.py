"""Runs of several processes: one per host of a TPU slice, one per SLURM task, or by address."""

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from dfpo_jax.training import compilation_cache, failures

# Seconds without a heartbeat after which JAX ends all processes; JAX's default is 100.
_HEARTBEAT = {"heartbeat_timeout_seconds": 45}
ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
AUTOMATIC = "DFPO_MULTIHOST"


def initialize(environment: dict[str, str] | None = None) -> str:
    """Connect the processes of a run if the environment says that there are several.

    After that, a failure of one ends them all, see `failures`. Call it before any use of JAX's
    devices. It checks, in this order:

      explicit   JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES, JAX_PROCESS_ID, all three
      SLURM      SLURM_JOB_ID with SLURM_NTASKS above 1
      TPU pod    DFPO_MULTIHOST=1, as `tools/launch_tpu_pod.sh` sets it; more than one name in
                 TPU_WORKER_HOSTNAMES (GKE); or MEGASCALE_COORDINATOR_ADDRESS

    Args:
      environment: `os.environ` by default.

    Returns:
      The kind that it found: "explicit", "slurm", "tpu" or "single".

    Raises:
      ValueError: only some of the three explicit variables are set, or one is not a number or is
        out of range.
    """
    how = _connect(os.environ if environment is None else environment)
    failures.watch()
    if how != "single":
        compilation_cache.leave_default()
    return how


def _connect(found: Mapping[str, str]) -> str:
    explicit = [name for name in (ADDRESS, COUNT, INDEX) if found.get(name)]
    if explicit:
        if len(explicit) < 3:
            missing = [name for name in (ADDRESS, COUNT, INDEX) if name not in explicit]
            raise ValueError(
                f"{', '.join(explicit)} set without {', '.join(missing)}; set all three or none"
            )
        try:
            count, index = int(found[COUNT]), int(found[INDEX])
        except ValueError:
            raise ValueError(
                f"{COUNT} is {found[COUNT]!r} and {INDEX} {found[INDEX]!r}; they must be integers"
            ) from None
        if not 0 <= index < count:
            raise ValueError(f"{INDEX} is {index}; it must lie in [0, {count}), {COUNT}")
        jax.distributed.initialize(found[ADDRESS], count, index, **_HEARTBEAT)
        return "explicit"
    if found.get("SLURM_JOB_ID") and int(found.get("SLURM_NTASKS") or 1) > 1:
        jax.distributed.initialize(**_HEARTBEAT)
        return "slurm"
    several = "," in found.get("TPU_WORKER_HOSTNAMES", "") or found.get(AUTOMATIC) == "1"
    if several or found.get("MEGASCALE_COORDINATOR_ADDRESS"):
        jax.distributed.initialize(**_HEARTBEAT)
        return "tpu"
    return "single"


def is_main() -> bool:
    """Whether this process writes the logs."""
    return jax.process_index() == 0


def check_same(name: str, value: Any, advice: str = "") -> None:
    """Raises ValueError unless all processes have the same value.

    Args:
      name: the value's name, for the message.
      value: this process's value, of a type that JSON can encode.
      advice: the end of the message.
    """
    text = json.dumps(value, sort_keys=True)
    if len(set(gather(hashlib.sha256(text.encode()).hexdigest()))) > 1:
        raise ValueError(f"the processes of this run have different {name}{advice}")


def gather(value: Any) -> list[Any]:
    """The values of all processes in order, of a type that JSON can encode; all must call it."""
    if jax.process_count() == 1:
        return [value]
    own = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(own.size))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: own.size] = own
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def barrier(name: str) -> None:
    """Wait until every process has called this."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
