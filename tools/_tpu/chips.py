"""TPU chips: published figures, and the time a program takes at least on one of them."""

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One chip, from the "System architecture" pages of the Cloud TPU documentation.

    Attributes:
      hbm_bytes: memory.
      flops: peak bfloat16 operations per second.
      hbm_bandwidth: bytes per second between chip and memory.
      ici_bandwidth: bytes per second that a chip can send over all its links together.
    """

    hbm_bytes: float
    flops: float
    hbm_bandwidth: float
    ici_bandwidth: float


CHIPS = {
    "v4": Chip(32 * GIB, 275e12, 1228e9, 300e9),
    "v5e": Chip(16 * GIB, 197e12, 819e9, 200e9),
    "v5p": Chip(95 * GIB, 459e12, 2765e9, 600e9),
    "v6e": Chip(32 * GIB, 918e12, 1640e9, 400e9),
}


def parse_topology(text: str) -> tuple[str, tuple[int, ...]]:
    """ "v5p:4x4x4" -> ("v5p", (4, 4, 4)).

    Raises:
      ValueError: unknown chip, or sizes that are no two or three positive integers.
    """
    name, _, sizes = text.partition(":")
    if name not in CHIPS:
        raise ValueError(f"topology {text!r}: the chip must be one of {', '.join(CHIPS)}")
    axes = 3 if name in ("v4", "v5p") else 2
    parts = sizes.split("x")
    if len(parts) != axes or not all(part.isdecimal() and int(part) > 0 for part in parts):
        example = "x".join(["4"] * axes)
        raise ValueError(f"topology {text!r}: {name} has {axes} sizes, such as {name}:{example}")
    return name, tuple(int(part) for part in parts)


def roofline(chip: Chip, flops: float, hbm_bytes: float, ici_bytes: float) -> tuple[float, str]:
    """The least time, in seconds, and what bounds it: "MXU", "HBM" or "ICI".

    The three overlap perfectly here and each runs at its peak; a real step takes longer.

    Args:
      chip: the figures.
      flops: operations per chip.
      hbm_bytes: bytes per chip between chip and memory.
      ici_bytes: bytes a chip sends to others.
    """
    times = {
        "MXU": flops / chip.flops,
        "HBM": hbm_bytes / chip.hbm_bandwidth,
        "ICI": ici_bytes / chip.ici_bandwidth,
    }
    bound = max(times, key=times.get)
    return times[bound], bound
