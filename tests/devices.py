"""Environments of the processes that tests start."""

import os


def flags(devices=1):
    """XLA_FLAGS of a process with so many virtual devices, and the tests' other flags."""
    count = "--xla_force_host_platform_device_count"
    others = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if count not in flag]
    return " ".join([*others, f"{count}={devices}"])


def of_a_user():
    """The environment without what the tests set: one device, optimized programs.

    For programs that run for long. The compilation cache is that of the tests.
    """
    names = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")
    return {name: value for name, value in os.environ.items() if name not in names}
