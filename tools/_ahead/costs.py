"""Costs of a compiled program on one chip: operations, memory traffic, bytes between chips.

The compiler's `cost_analysis` counts the body of a loop once, but most of a decoder is in the body
of a scan. Here each computation counts as often as it runs:

- the body of a `while` counts as often as its trip count, or once if that is unknown
  (`unknown_loops`);
- every branch of a `conditional` counts;
- operations are those of matrix products (`dot`, `convolution`), of splash attention kernels
  and of cuDNN's attention (half of the square if causal); other kernels count 0
  (`unknown_kernels`);
- memory traffic is the bytes that instructions outside fusions read and write in HBM; a slice
  counts only its own size, and data in fast memory counts 0;
- bytes between chips are those that one chip sends in ring algorithms over a group of n chips:
  (n-1)/n of the whole array for all-gather, reduce-scatter and all-to-all, twice that for
  all-reduce, the whole array for collective-permute.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from _ahead import hlo

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_FREE = {
    "parameter",
    "constant",
    "get-tuple-element",
    "tuple",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
    "partition-id",
    "replica-id",
    "iota",
}
_TRANSFORMATIONS = {
    *("jit", "pjit", "jvp", "transpose", "vmap", "while", "body", "cond", "scan", "shard_map"),
    *("closed_call", "rematted_computation", "remat", "custom_vjp_call", "custom_jvp_call"),
}
_SPLASH_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}
_CUDNN_PRODUCTS = {"": 2, "Backward": 5}


@dataclass
class Costs:
    """Sums over one run of a program on one chip.

    Attributes:
      flops: operations.
      hbm_bytes: memory traffic.
      traffic: the same by part of the program, see `part_of`.
      sent: bytes sent to other chips, by kind of collective.
      unknown_loops: number of loops with unknown trip count; their bodies count once.
      unknown_kernels: number of kernels whose operations are not counted.
    """

    flops: float = 0.0
    hbm_bytes: float = 0.0
    traffic: Counter = field(default_factory=Counter)
    sent: Counter = field(default_factory=Counter)
    unknown_loops: int = 0
    unknown_kernels: int = 0


def program_costs(text: str) -> Costs:
    """The costs of a compiled program, from its text."""
    module, costs = hlo.parse(text), Costs()
    _visit(module, module.entry, 1.0, costs, fused=False)
    return costs


def _visit(module, name: str, times: float, costs: Costs, fused: bool, steps=None) -> None:
    """Adds the costs of a computation that runs `times` times.

    Args:
      module: the program.
      name: the computation.
      times: how often it runs.
      costs: the sums to add to.
      fused: whether it is inside a fusion.
      steps: channels of the collectives that the surrounding computation runs in steps inside
        several of its fusions. Each step has the whole array, so only the first one counts.
    """
    computation = module.computations[name]
    steps = set() if steps is None else steps
    scattered = "all-reduce-scatter" in name
    for x in computation.values():
        costs.flops += times * _flops(x, computation, costs)
        kind = x.opcode.removesuffix("-start")
        channel = re.search(r"channel_id=(\d+)", x.rest)
        if "async_collective_fusion_config" in x.rest and channel:
            kind = "" if channel.group(1) in steps else kind
            steps.add(channel.group(1))
        if kind in COLLECTIVES:
            kind = "reduce-scatter" if scattered and kind == "all-reduce" else kind
            costs.sent[kind] += times * sent_bytes(x, computation, kind)
        if not fused:
            moved = times * _traffic(module, x, computation)
            costs.hbm_bytes += moved
            costs.traffic[part_of(x)] += moved
        if x.opcode == "while":
            count = hlo.trip_count(module, x)
            costs.unknown_loops += count is None
            for body in x.called("body"):
                _visit(module, body, times * (1 if count is None else count), costs, fused)
        elif x.opcode in ("fusion", "async-start"):
            for inner in x.called("calls"):
                _visit(module, inner, times, costs, fused=True, steps=steps)
        elif x.opcode in ("call", "conditional"):
            kinds = ("to_apply", "true_computation", "false_computation", "branch_computations")
            for inner in x.called(*kinds):
                _visit(module, inner, times, costs, fused)


def part_of(x: hlo.Instruction) -> str:
    """The part of the program that an instruction is of, and its largest result.

    For example "backward layers/mlp/gate/dot_general bf16[8,2048,12288]": the path that JAX notes,
    without what transformations add to it, "backward" for what a gradient adds, and the kind of
    instruction where nothing is noted.
    """
    noted = re.search(r'op_name="([^"]*)"', x.rest)
    path = noted.group(1) if noted else x.opcode
    words = [word for word in re.split(r"[/()]", path) if word not in _TRANSFORMATIONS]
    words = [word for word in words if not re.fullmatch(r"|branch_\d+_fun|checkpoint\w*", word)]
    largest = max(x.shapes, key=lambda shape: shape.bytes, default=None)
    sizes = f" {largest.dtype}[{','.join(map(str, largest.sizes))}]" if largest else ""
    return ("backward " if "transpose(" in path else "") + "/".join(words[-4:]) + sizes


def _flops(x: hlo.Instruction, computation, costs: Costs) -> float:
    if x.opcode == "dot":
        left = computation[x.operands[0]].shapes[0].sizes
        summed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", x.rest).group(1)
        return 2.0 * x.shapes[0].elements * math.prod(left[int(i)] for i in summed.split(",") if i)
    if x.opcode == "convolution":
        return convolution_flops(x, *(computation[o].shapes[0].sizes for o in x.operands[:2]))
    target = re.search(r'custom_call_target="([^"]*)"', x.rest)
    if target is None:
        return 0.0
    attention = re.fullmatch(r"__cudnn\$fmha\w*?Softmax(Backward)?", target.group(1))
    if attention:  # [B, T, N, H] queries, keys and values come first
        queries, keys = (computation[o].shapes[0] for o in x.operands[:2])
        products = _CUDNN_PRODUCTS[attention.group(1) or ""]
        causal = re.search(r'"mask_type":\s*"CAUSAL"', x.rest)
        return (1.0 if causal else 2.0) * products * queries.elements * keys.sizes[1]
    if target.group(1) == "tpu_custom_call":
        splash = re.search(r"splash_m[hq]a_(fwd|dq|dkv)", x.name)
        if splash is None:
            costs.unknown_kernels += 1
            return 0.0
        arrays = [s for o in x.operands if o in computation for s in computation[o].shapes]
        queries = max(arrays, key=lambda s: (len(s.sizes), s.elements))
        return _SPLASH_PRODUCTS[splash.group(1)] * queries.elements * queries.sizes[-2]
    costs.unknown_kernels += target.group(1).startswith("__cu")
    return 0.0


def convolution_flops(x: hlo.Instruction, left: tuple[int, ...], right: tuple[int, ...]) -> float:
    """Operations of a convolution; the TPU compiler writes matrix products as convolutions.

    Along a spatial axis, only pairs of output and window position that meet an input count.

    Args:
      x: the instruction, with `window` and `dim_labels`.
      left: sizes of the input.
      right: sizes of the kernel.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", x.rest)
    inputs, kernel, outputs = labels.groups()
    size = x.shapes[0].sizes
    total = 2.0 * size[outputs.index("b")] * size[outputs.index("f")] * right[kernel.index("i")]
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", _window(x.rest)))
    for axis in range(len(inputs) - 2):

        def option(name, default, axis=axis):
            values = window[name].split("x") if name in window else None
            return values[axis] if values else default

        low = int(option("pad", "0_0").split("_")[0])
        stride, dilate, spread = (
            int(option(name, "1")) for name in ("stride", "rhs_dilate", "lhs_dilate")
        )
        n = left[inputs.index(str(axis))]
        starts = np.arange(size[outputs.index(str(axis))])[:, None] * stride - low
        places = starts + np.arange(int(option("size", "1")))[None] * dilate
        met = (places >= 0) & (places <= (n - 1) * spread) & (places % spread == 0)
        total *= int(met.sum())
    return total


def _window(rest: str) -> str:
    found = re.search(r"window=\{([^}]*)\}", rest)
    return found.group(1) if found else ""


def group_size(rest: str) -> int:
    """Number of chips in one group of a collective; 1 if none is named.

    Raises:
      ValueError: groups are named in a way that this does not read.
    """
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", rest)
    if listed:
        return len(listed.group(1).split(","))
    counted = re.search(r"replica_groups=\[(\d+),(\d+)\]<=", rest)
    if counted:
        return int(counted.group(2))
    named = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", rest)
    if named:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", named.group(1)))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", named.group(2)))
    if unread := re.search(r"replica_groups=.{,60}", rest):
        raise ValueError(f"{unread.group(0)}: no groups of chips that can be read")
    return 1


def sent_bytes(x: hlo.Instruction, computation, kind: str) -> float:
    """Bytes that one chip sends in a collective, see the module."""
    arrays = [s for o in x.operands if o in computation for s in computation[o].shapes]
    size = sum(s.bytes for s in arrays)
    if kind == "collective-permute":
        return size
    n = group_size(x.rest)
    if kind == "all-gather":
        return size * (n - 1)
    return size * (n - 1) / n * (2 if kind == "all-reduce" else 1)


def _traffic(module: hlo.Module, x: hlo.Instruction, computation) -> float:
    if x.opcode in _FREE or x.opcode.endswith(("-done", "-update")):
        return 0.0
    written = _in_hbm(x.shapes)
    operands = [computation[o].shapes for o in x.operands if o in computation]
    if x.opcode in ("dynamic-slice", "gather", "slice"):
        return 2 * written
    if x.opcode == "dynamic-update-slice":
        return 2 * _in_hbm(operands[1])
    if x.opcode == "async-start":  # its shapes are those of the operands, the results and a flag
        results = x.shapes[sum(map(len, operands)) : -1]
        return _fusion_traffic(module, x, operands, _in_hbm(results))
    if x.opcode.endswith("-start"):
        return sum(map(_in_hbm, operands)) + _in_hbm(_results_of_start(x, sum(map(len, operands))))
    if x.opcode == "fusion":
        return _fusion_traffic(module, x, operands, written)
    return written + sum(map(_in_hbm, operands))


def _results_of_start(x: hlo.Instruction, operands: int) -> tuple[hlo.Shape, ...]:
    """Where a copy or collective that is only begun will write; `operands` counts their arrays."""
    if x.opcode == "copy-start":  # result, operand, flag
        return x.shapes[:1]
    if len(x.shapes) >= 2 * operands:  # operands, results, flags
        return x.shapes[operands : 2 * operands]
    return x.shapes[:operands]  # an all-reduce names its results alone


def _in_hbm(shapes: tuple[hlo.Shape, ...]) -> float:
    return sum(s.bytes for s in shapes if s.in_hbm)


def _fusion_traffic(module: hlo.Module, x: hlo.Instruction, operands, written: float) -> float:
    """Bytes that a fusion reads and writes; operands that are only sliced count their slices.

    An operand that is updated in place counts no read, and only the update as written.
    """
    inner = module.computations[x.called("calls")[0]]
    total = written
    for name, shapes in zip(hlo.parameters(inner), operands, strict=False):
        whole = _in_hbm(shapes)
        read, updated = _touched(module, inner, name, whole)
        total += min(read, whole)
        if updated is not None:
            total += min(updated, whole) - whole
    return max(total, 0.0)


def _touched(module, inner, name: str, whole: float) -> tuple[float, float | None]:
    """Bytes of a value that a fused computation reads, and updates in place (None if not)."""
    read, updated = 0.0, None
    for x in inner.values():
        for position, operand in enumerate(x.operands):
            if operand != name or x.opcode == "parameter":
                continue
            if x.opcode in ("slice", "dynamic-slice", "gather") and position == 0:
                read += x.shapes[0].bytes
            elif x.opcode == "dynamic-update-slice" and position == 0:
                updated = (updated or 0.0) + inner[x.operands[1]].shapes[0].bytes
            elif x.opcode == "bitcast" or _hands_on(module, x, position):
                more, changed = _touched(module, inner, x.name, whole)
                read += more
                updated = changed if updated is None else updated + (changed or 0.0)
            elif x.opcode == "fusion":
                nested = module.computations[x.called("calls")[0]]
                read += _touched(module, nested, hlo.parameters(nested)[position], whole)[0]
            else:
                read += whole
    return read, updated


def _hands_on(module, x: hlo.Instruction, position: int) -> bool:
    """Whether an instruction is a fusion that only returns or reshapes one of its operands."""
    if x.opcode != "fusion":
        return False
    nested = module.computations[x.called("calls")[0]]
    value = hlo.root(nested)
    while value.opcode == "bitcast":
        value = nested[value.operands[0]]
    return value.name == hlo.parameters(nested)[position]
