"""Parses the text of a compiled program: instructions, shapes, loops and calls."""

import math
import re
from typing import NamedTuple

_BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}
_SHAPE = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\](\{[^{}]*\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_CALLED = re.compile(
    r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


class Shape(NamedTuple):
    """One array: element type, sizes, and whether it is in a chip's memory (HBM)."""

    dtype: str
    sizes: tuple[int, ...]
    in_hbm: bool

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.sizes)

    @property
    def bytes(self) -> float:
        """Size without padding."""
        digits = re.search(r"\d+", self.dtype)
        bits = _BITS.get(self.dtype) or (int(digits.group()) if digits else 0)
        return self.elements * bits / 8


class Instruction(NamedTuple):
    """One instruction; `shapes` are those of its result, with tuples flattened."""

    name: str
    shapes: tuple[Shape, ...]
    opcode: str
    operands: tuple[str, ...]
    rest: str
    is_root: bool

    def called(self, *kinds: str) -> list[str]:
        """Names of the computations that it calls by attributes of the given names."""
        found = [name for kind, name in _CALLED.findall(self.rest) if kind in kinds]
        if "branch_computations" in kinds:
            for group in _BRANCHES.findall(self.rest):
                found += [name.strip().lstrip("%") for name in group.split(",")]
        return found


class Module(NamedTuple):
    """Computations by name, as instructions by name, and the name of the entry."""

    computations: dict[str, dict[str, Instruction]]
    entry: str


def parse_shapes(text: str) -> tuple[Shape, ...]:
    """All arrays of a shape; memory spaces other than 0 (fast memory, host) are not HBM."""
    return tuple(
        Shape(
            dtype, tuple(int(n) for n in sizes.split(",") if n), not re.search(r"S\([1-9]", layout)
        )
        for dtype, sizes, layout in _SHAPE.findall(text)
    )


def _balanced(text: str, start: int) -> int:
    """Index after the parenthesis that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i + 1
    raise ValueError(f"unbalanced parentheses in {text[start : start + 80]!r}")


def parse_instruction(line: str) -> Instruction | None:
    """One line of a computation, or None for anything else."""
    match = _INSTRUCTION.match(line)
    if match is None:
        return None
    begin = match.end()
    end = _balanced(line, begin) if line[begin] == "(" else line.index(" ", begin)
    opening = line.index("(", end)
    closing = _balanced(line, opening)
    return Instruction(
        name=match.group(2),
        shapes=parse_shapes(line[begin:end]),
        opcode=line[end:opening].strip(),
        operands=tuple(re.findall(r"%([\w.\-]+)", line[opening:closing]))
        or (line[opening + 1 : closing - 1],),
        rest=line[closing:],
        is_root=match.group(1) is not None,
    )


def parse(text: str) -> Module:
    """A whole module.

    Raises:
      ValueError: there is no entry computation.
    """
    computations, entry, current = {}, None, None
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            current = computations.setdefault(header.group(2), {})
            entry = header.group(2) if header.group(1) else entry
        elif current is not None:
            instruction = parse_instruction(line)
            if instruction is not None:
                current[instruction.name] = instruction
    if entry is None:
        raise ValueError("the text holds no entry computation")
    return Module(computations, entry)


def trip_count(module: Module, loop: Instruction) -> int | None:
    """How often a `while` runs its body; None if the text does not tell.

    It reads the compiler's note, or a condition "counter < constant" and a body that adds constants
    to the counter. It assumes that counters start at 0, as those of scans and of the compiler do.
    """
    noted = re.search(r'known_trip_count\\?":\{\\?"n\\?":\\?"(\d+)', loop.rest)
    if noted:
        return int(noted.group(1))
    condition = Scope(module, module.computations[loop.called("condition")[0]])
    compare = condition.resolve(root(condition.computation).name)
    if compare is None or compare[1].opcode != "compare" or "direction=LT" not in compare[1].rest:
        return None
    scope, compare = compare
    counter, limit = (scope.resolve(operand) for operand in compare.operands)
    if counter is None or limit is None or limit[1].opcode != "constant":
        return None
    index = re.search(r"index=(\d+)", counter[1].rest)
    if counter[1].opcode != "get-tuple-element" or index is None:
        return None
    body = Scope(module, module.computations[loop.called("body")[0]])
    step = _increment(body, root(body.computation).operands[int(index.group(1))], index.group(1))
    return -(-int(limit[1].operands[0]) // step) if step else None


class Scope(NamedTuple):
    """A computation; for a fused one also the source of its parameters."""

    module: Module
    computation: dict[str, Instruction]
    outer: "Scope | None" = None
    arguments: dict[str, str] | None = None

    def resolve(self, name: str) -> "tuple[Scope, Instruction] | None":
        """The instruction that computes a value, behind fusions, copies and bitcasts."""
        x = self.computation.get(name)
        if x is None:
            return None
        if x.opcode == "parameter" and self.outer is not None:
            return self.outer.resolve(self.arguments[x.name])
        if x.opcode in ("copy", "bitcast"):
            return self.resolve(x.operands[0])
        if x.opcode == "fusion" and len(x.shapes) == 1:
            inner = self.module.computations[x.called("calls")[0]]
            arguments = dict(zip(parameters(inner), x.operands, strict=False))
            return Scope(self.module, inner, self, arguments).resolve(root(inner).name)
        return self, x


def _increment(scope: Scope, name: str, index: str) -> int | None:
    """The constant that a body adds to element `index` of its tuple; None if there is none."""
    found = scope.resolve(name)
    if found is None:
        return None
    scope, x = found
    if x.opcode == "get-tuple-element":
        return 0 if f"index={index}" in re.split(r"[,\s]+", x.rest) else None
    if x.opcode != "add":
        return None
    total = 0
    for operand in x.operands:
        term = scope.resolve(operand)
        if term is not None and term[1].opcode == "constant":
            total += int(term[1].operands[0])
        else:
            more = _increment(scope, operand, index)
            if more is None:
                return None
            total += more
    return total


def root(computation: dict[str, Instruction]) -> Instruction:
    """The instruction that computes the result of a computation."""
    return next(x for x in computation.values() if x.is_root)


def parameters(computation: dict[str, Instruction]) -> list[str]:
    """Names of its parameters, in order."""
    found = {int(x.operands[0]): x.name for x in computation.values() if x.opcode == "parameter"}
    return [found[i] for i in sorted(found)]
