"""Published figures of TPU and GPU chips, and the least time that a program takes on one."""

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One chip. Source: "System architecture" pages of Cloud TPU, and NVIDIA's data sheets.

    Attributes:
      hbm_bytes: bytes of memory.
      flops: peak bfloat16 operations per second, without sparsity.
      hbm_bandwidth: bytes per second between chip and memory.
      link_bandwidth: bytes per second that a chip can send over all its links.
      bounds: names of these three limits.
    """

    hbm_bytes: float
    flops: float
    hbm_bandwidth: float
    link_bandwidth: float
    bounds: tuple[str, str, str] = ("MXU", "HBM", "ICI")


TPUS = {
    "v4": Chip(32 * GIB, 275e12, 1228e9, 300e9),
    "v5e": Chip(16 * GIB, 197e12, 819e9, 200e9),
    "v5p": Chip(95 * GIB, 459e12, 2765e9, 600e9),
    "v6e": Chip(32 * GIB, 918e12, 1640e9, 400e9),
}

# The memory of a GPU is what its driver reports, for the largest model of that name.
_GPU = ("tensor cores", "HBM", "NVLink")
GPUS = {
    "a100": Chip(79.0 * GIB, 312e12, 2039e9, 300e9, _GPU),
    "h100": Chip(79.1 * GIB, 989e12, 3350e9, 450e9, _GPU),
    "h200": Chip(139.8 * GIB, 989e12, 4800e9, 450e9, _GPU),
    "l4": Chip(22.0 * GIB, 121e12, 300e9, 32e9, ("tensor cores", "GDDR", "PCIe")),
}

# By the name that JAX gives a device. Other models of a GPU have other memory.
_KINDS = {
    "TPU v4": TPUS["v4"],
    "TPU v5 lite": TPUS["v5e"],
    "TPU v5e": TPUS["v5e"],
    "TPU v5": TPUS["v5p"],
    "TPU v5p": TPUS["v5p"],
    "TPU v6 lite": TPUS["v6e"],
    "TPU v6e": TPUS["v6e"],
    "NVIDIA A100-SXM4-80GB": GPUS["a100"],
    "NVIDIA H100 80GB HBM3": GPUS["h100"],
    "NVIDIA H200": GPUS["h200"],
    "NVIDIA L4": GPUS["l4"],
}


def chip_of(kind: str) -> Chip | None:
    """The figures of a device whose `device_kind` JAX gives; None where they are not known."""
    return _KINDS.get(kind)


def parse_topology(text: str) -> tuple[str, tuple[int, ...]]:
    """ "v5p:4x4x4" -> ("v5p", (4, 4, 4)).

    Raises:
      ValueError: the chip is unknown, or the sizes are not two or three positive integers.
    """
    name, _, sizes = text.partition(":")
    if name not in TPUS:
        raise ValueError(f"topology {text!r}: the chip must be one of {', '.join(TPUS)}")
    axes = 3 if name in ("v4", "v5p") else 2
    parts = sizes.split("x")
    if len(parts) != axes or not all(part.isdecimal() and int(part) > 0 for part in parts):
        example = "x".join(["4"] * axes)
        raise ValueError(f"topology {text!r}: {name} has {axes} sizes, such as {name}:{example}")
    return name, tuple(int(part) for part in parts)


def roofline(chip: Chip, flops: float, hbm_bytes: float, link_bytes: float) -> tuple[float, str]:
    """The least time, in seconds, and the name in the chip's `bounds` of what limits it.

    It assumes that the three overlap perfectly and run at their peak; a real step takes longer.

    Args:
      chip: the chip's figures.
      flops: operations per chip.
      hbm_bytes: bytes per chip between chip and memory.
      link_bytes: bytes a chip sends to others.
    """
    return max(
        (flops / chip.flops, chip.bounds[0]),
        (hbm_bytes / chip.hbm_bandwidth, chip.bounds[1]),
        (link_bytes / chip.link_bandwidth, chip.bounds[2]),
    )
