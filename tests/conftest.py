"""Test settings: 8 virtual CPU devices, strict rank promotion, and the jit/no-jit variant."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_FLAG = "--xla_force_host_platform_device_count=8"
if _FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}".strip()

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(params=["eager", "jit"])
def variant(request):
    """A function transformation: the identity, or `jax.jit` (arguments pass through)."""
    if request.param == "eager":
        return lambda fun, **kwargs: fun
    return jax.jit
