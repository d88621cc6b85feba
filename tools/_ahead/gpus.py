"""GPUs as devices to compile for, from descriptions that XLA accepts instead of a card."""

from _ahead.chips import GPUS

# Figures per multiprocessor are from the CUDA programming guide's table of compute capabilities;
# memory, clock (GHz), cache (MiB) and number of multiprocessors are from the data sheets.
_ARCHITECTURES = {
    "a100": dict(major=8, minor=0, cores=108, fpus=64, shared=166912, l2=40, clock=1.41),
    "h100": dict(major=9, minor=0, cores=132, fpus=128, shared=232448, l2=50, clock=1.98),
    "h200": dict(major=9, minor=0, cores=132, fpus=128, shared=232448, l2=50, clock=1.98),
    "l4": dict(major=8, minor=9, cores=58, fpus=128, shared=101376, l2=48, clock=2.04),
}
_DESCRIPTION = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {shared}
  shared_memory_per_core: {shared_per_core}
  threads_per_core_limit: {threads}
  core_count: {cores}
  fpus_per_core: {fpus}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  memory_bandwidth: {bandwidth}
  l2_cache_size: {l2_bytes}
  clock_rate_ghz: {clock}
  device_memory_size: {memory}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 patch: 0 }}
device_description_str: "{name}"
"""


def parse_gpu(text: str) -> tuple[str, int]:
    """ "h100:8" -> ("h100", 8), "h100" -> ("h100", 1).

    Raises:
      ValueError: the chip is unknown, or the number is not a positive integer.
    """
    name, colon, count = text.partition(":")
    if name not in GPUS:
        raise ValueError(f"gpu {text!r}: the chip must be one of {', '.join(GPUS)}")
    if colon and not (count.isdecimal() and int(count) > 0):
        raise ValueError(f"gpu {text!r}: the number after the colon must be a positive integer")
    return name, int(count) if colon else 1


def describe(name: str) -> str:
    """XLA's description (a GpuTargetConfigProto as text) of one of `GPUS`."""
    x = _ARCHITECTURES[name]
    return _DESCRIPTION.format(
        **x,
        name=name,
        shared_per_core=x["shared"] + 1024,
        threads=1536 if (x["major"], x["minor"]) == (8, 9) else 2048,
        bandwidth=int(GPUS[name].hbm_bandwidth),
        l2_bytes=x["l2"] * 2**20,
        memory=int(GPUS[name].hbm_bytes),
    )


def devices(name: str, count: int = 1):
    """`count` GPUs of one host, as devices to compile for."""
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(
        platform="cuda", topology=f"1x1x{count}", target_config=describe(name)
    )
    return topology.devices
