"""Parses the text of a compiled XLA program (HLO).

Only what `fsa.cost_model` needs: computations, instructions, their operands and the
shapes of their results. The syntax is described in
https://openxla.org/xla/operation_semantics and in XLA's hlo_parser.cc.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

_SHAPE = re.compile(r"(\w+)\[([\d,<=?]*)\](?:\{([^}]*)\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_NAME = re.compile(r"%([\w.\-]+)")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%([\w.\-]+) = (.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\{$")
_OPCODE = re.compile(r"([\w\-]+)\(")

_BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}


class Shape(NamedTuple):
    """The shape of an array.

    Attributes:
      dtype: such as "bf16".
      dims: the sizes of its dimensions.
      space: number of the memory that holds it; 0 is the device's main memory.
    """

    dtype: str
    dims: tuple[int, ...]
    space: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Size in bytes, without padding to tiles."""
        return self.size * _bits(self.dtype) // 8


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    return int(re.search(r"\d+", dtype)[0])


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a program.

    Attributes:
      name: unique in its computation.
      opcode: such as "all-gather".
      shapes: shapes of its results; nested tuples are flattened.
      operands: names of instructions of the same computation.
      argument: the text between the parentheses, such as a constant's value.
      attributes: the text after the parentheses.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    argument: str
    attributes: str

    def called(self, role: str) -> str | None:
        """Returns the computation it calls in a role: "calls", "body", "condition"."""
        found = re.search(rf"\b{role}=%([\w.\-]+)", self.attributes)
        return found and found[1]

    def branches(self) -> list[str]:
        """Returns the names of the computations of a conditional."""
        listed = re.search(r"branch_computations=\{([^}]*)\}", self.attributes)
        if listed:
            return _NAME.findall(listed[1])
        return [self.called("true_computation"), self.called("false_computation")]

    def integers(self, name: str) -> tuple[int, ...]:
        """Returns the numbers of an attribute such as `dimensions={0,1}`."""
        found = re.search(rf"\b{name}=\{{([\d,]*)\}}", self.attributes)
        return tuple(map(int, found[1].split(","))) if found and found[1] else ()

    @property
    def index(self) -> int:
        """The index of a get-tuple-element."""
        return int(re.search(r"\bindex=(\d+)", self.attributes)[1])

    @property
    def source(self) -> str:
        """The operation of the JAX program that it comes from, or ""."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True, eq=False)
class Computation:
    """A computation: what HLO calls a function of a program.

    Attributes:
      name: the computation's name.
      instructions: by name, in order.
      root: name of the instruction whose value it returns.
    """

    name: str
    instructions: Mapping[str, Instruction]
    root: str

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        """The parameters by number."""
        found = (i for i in self.instructions.values() if i.opcode == "parameter")
        return {int(each.argument): each for each in found}

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """The instructions that use each instruction, by its name."""
        users = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                users[operand].append(instruction)
        return users


class Program(NamedTuple):
    """A compiled program.

    Attributes:
      computations: by name.
      entry: name of the computation that runs.
    """

    computations: Mapping[str, Computation]
    entry: str


def parse(text: str) -> Program:
    """Parses the text of a program.

    Raises:
      ValueError: if the text has no entry computation.
    """
    computations, entry, name = {}, None, None
    instructions, root = {}, ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            name, instructions, root = header[2], {}, ""
            entry = name if header[1] else entry
        elif line == "}" and name:
            computations[name] = Computation(name, instructions, root)
            name = None
        elif name and (found := _INSTRUCTION.match(line)):
            instructions[found[2]] = _instruction(found[2], found[3])
            root = found[2] if found[1] else root
    if entry is None:
        raise ValueError("no ENTRY computation; give the text of a compiled program")
    return Program(computations, entry)


def _instruction(name: str, text: str) -> Instruction:
    kind, rest = _split_type(text)
    opcode = _OPCODE.match(rest)[1]
    end = _closing(rest, len(opcode))
    argument = rest[len(opcode) + 1 : end]
    return Instruction(
        name=name,
        opcode=opcode,
        shapes=tuple(map(_shape, _SHAPE.findall(kind))),
        operands=tuple(_NAME.findall(argument)),
        argument=argument,
        attributes=rest[end + 1 :],
    )


def _shape(parts: tuple[str, str, str]) -> Shape:
    dtype, dims, layout = parts
    sizes = re.findall(r"\d+", dims)
    space = _SPACE.search(layout)
    return Shape(dtype, tuple(map(int, sizes)), int(space[1]) if space else 0)


def _split_type(text: str) -> tuple[str, str]:
    """Splits text after a type; the type of a tuple has spaces, others have none."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    return text[:end], text[end:].lstrip()


def _closing(text: str, start: int) -> int:
    """Returns the position of the parenthesis that closes the one at `start`."""
    depth = 0
    for found in re.finditer(r"[()]", text[start:]):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return start + found.start()
    raise ValueError(f"no closing parenthesis in {text[:80]!r}")
