"""Test settings: 8 virtual CPU devices, strict rank promotion, programs compiled once a session.

Programs lie in a cache that the workers and the programs they start share. It is removed at the
end, unless JAX_COMPILATION_CACHE_DIR names one to keep.
"""

import atexit
import gc
import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_FLAG = "--xla_force_host_platform_device_count=8"
if _FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}".strip()
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
