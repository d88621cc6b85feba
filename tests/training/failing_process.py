"""One of several processes, of which one fails: python failing_process.py HOW WHICH WORKDIR."""

import os
import resource
import signal
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[n]) for n in (1, 2)]

import jax  # noqa: E402

from dfpo_jax.training import command_line, distributed, failures  # noqa: E402


def save(workdir, full):
    """Saves a state until the disk is full; a checkpoint is written in the background."""
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    from dfpo_jax.training.checkpoint import Checkpointer
    from dfpo_jax.types import TrainState

    mesh = jax.sharding.Mesh(np.array(jax.devices()), "data")
    rows, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    noise = np.random.default_rng(0).normal(size=(1024, 64)).astype(np.float32)
    array = jax.make_array_from_callback(noise.shape, rows, lambda index: noise[index])
    zero = jax.jit(lambda: jnp.float32(0), out_shardings=everywhere)()
    key = jax.jit(lambda: jax.random.key(0), out_shardings=everywhere)()
    checkpoints = Checkpointer(workdir)
    if full:  # every write to a file ends here, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    with failures.shared():
        for step in range(5):
            state = TrainState(
                step=jax.jit(lambda n=step: jnp.int32(n), out_shardings=everywhere)(),
                skipped=zero,
                params={"policy": array},
                opt_state=None,
                reference=None,
                controls={"value_shift": zero, "value_scale": zero},
                key=key,
            )
            checkpoints.save(state)
        checkpoints.close()
    print("all are saved", flush=True)


def fail(how):
    if how == "memory":
        raise MemoryError("sampling does not fit\nthe devices")
    if how == "verifier":
        raise ValueError("verifier 'm:f' cannot be started")
    if how == "bug":
        [][1]
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "late":
        time.sleep(5.0)
        raise OSError(28, "No space left on device")


def main(how, which, workdir):
    distributed.initialize()
    mine = jax.process_index() == int(which)
    if how == "disk":
        save(workdir, mine)
    elif how == "bug":  # nothing announces it but Python's own last resort
        fail(how) if mine else distributed.barrier("never reached by all")
    elif how == "late":  # the others are done
        with failures.shared():
            fail(how) if mine else None
    elif how == "lock":
        from dfpo_jax.training import lock

        with command_line.user_errors(), failures.shared(code=2):
            if distributed.is_main():
                with lock.kept(Path(workdir)):
                    pass
            distributed.barrier("locked")
        print("ready", flush=True)
        time.sleep(600.0) if mine else distributed.barrier("never reached by all")
    else:
        with command_line.user_errors():
            try:
                with failures.shared(code=2 if how == "verifier" else 1):
                    fail(how) if mine else distributed.barrier("never reached by all")
            finally:
                if how == "memory":  # cleaning up waits for the others
                    time.sleep(600.0)


if __name__ == "__main__":
    main(*sys.argv[1:])
