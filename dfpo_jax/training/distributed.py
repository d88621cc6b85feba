"""Runs of many processes: one per host of a TPU slice, one per task of SLURM, or by address."""

import hashlib
import json
import os
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
AUTOMATIC = "DFPO_MULTIHOST"


def initialize(environment: dict[str, str] | None = None) -> str:
    """Connect the processes of a run, if the environment says that there are several.

    Call it before anything else touches JAX's devices. In this order:

      explicit   JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES, JAX_PROCESS_ID, all three
      SLURM      SLURM_JOB_ID with SLURM_NTASKS above 1
      TPU pod    DFPO_MULTIHOST=1, as `tools/launch_tpu_pod.sh` sets it; more than one name in
                 TPU_WORKER_HOSTNAMES (GKE); or MEGASCALE_COORDINATOR_ADDRESS

    Args:
      environment: `os.environ` by default.

    Returns:
      Which one it was: "explicit", "slurm", "tpu" or "single".

    Raises:
      ValueError: some but not all of the three explicit variables are set, or one is no number or
        out of range.
    """
    found = os.environ if environment is None else environment
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
        jax.distributed.initialize(found[ADDRESS], count, index)
        return "explicit"
    if found.get("SLURM_JOB_ID") and int(found.get("SLURM_NTASKS") or 1) > 1:
        jax.distributed.initialize()
        return "slurm"
    several = "," in found.get("TPU_WORKER_HOSTNAMES", "") or found.get(AUTOMATIC) == "1"
    if several or found.get("MEGASCALE_COORDINATOR_ADDRESS"):
        jax.distributed.initialize()
        return "tpu"
    return "single"


def is_main() -> bool:
    """Whether this process writes the logs."""
    return jax.process_index() == 0


def check_same(name: str, value: Any, advice: str = "") -> None:
    """Raises ValueError unless all processes have the same value, anything that JSON holds.

    Args:
      name: of the value, for the message.
      value: this process's.
      advice: the end of the message.
    """
    if jax.process_count() == 1:
        return
    text = json.dumps(value, sort_keys=True)
    own = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    everyones = multihost_utils.process_allgather(own)
    if (everyones != everyones[0]).any():
        raise ValueError(f"the processes of this run have different {name}{advice}")


def barrier(name: str) -> None:
    """Wait until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
