"""Test settings: 8 virtual CPU devices, strict rank promotion, programs that compile fast, once.

Programs lie in a cache that the workers and the programs they start share. It is removed at the
end, unless JAX_COMPILATION_CACHE_DIR names one to keep.
"""

import atexit
import gc
import mmap
import os
import pathlib
import shutil
import tempfile

import jaxlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")


def _known(name):
    """Whether XLA has this flag: it ends a process over one that it does not have."""
    library = pathlib.Path(jaxlib.__file__).with_name("libjax_common.so")
    if not library.exists():
        return False
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return text.find(name.encode()) >= 0


# Without its emitters of fusions XLA compiles twice as fast.
for _name, _value in (
    ("xla_force_host_platform_device_count", 8),
    ("xla_cpu_use_fusion_emitters", "false"),
):
    _flags = os.environ.get("XLA_FLAGS", "")
    if _name not in _flags and _known(_name):
        os.environ["XLA_FLAGS"] = f"{_flags} --{_name}={_value}".strip()
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="dfpo_jax_tests_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Most programs run a few times only, so that optimizing them would take longer than it saves.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax  # noqa: E402
import pytest  # noqa: E402

from dfpo_jax import memory  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
# Tracing makes so many objects that looking for cycles in them took a tenth of the time.
gc.freeze()
gc.set_threshold(50_000, 20, 50)


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Programs of a file leave the memory with it: a worker would otherwise grow to gigabytes."""
    yield
    memory.clear_caches()
    gc.collect()


@pytest.fixture(params=["eager", "jit"])
def variant(request):
    """A function transformation: the identity, or `jax.jit` (arguments pass through)."""
    if request.param == "eager":
        return lambda fun, **kwargs: fun
    return jax.jit
