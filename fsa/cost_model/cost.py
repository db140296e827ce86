"""Counts the FLOPs, memory traffic and collectives of a compiled program on one device.

A loop's body counts as often as it runs, unlike in `Compiled.cost_analysis`. Of a
conditional, the branch with the most FLOPs counts.
"""

import dataclasses
import math
import re
from collections.abc import Mapping

from fsa.cost_model import device_groups, matmul_flops, traffic
from fsa.cost_model.hlo_text import Computation, Instruction, Program, parse
from fsa.cost_model.trip_counts import trip_count

# The share of an array that one of g devices sends, by algorithms that use all links.
_SENT = {
    "all-gather": lambda g: (g - 1) / g,
    "reduce-scatter": lambda g: (g - 1) / g,
    "all-reduce": lambda g: 2 * (g - 1) / g,
    "all-to-all": lambda g: (g - 1) / g,
    "ragged-all-to-all": lambda g: (g - 1) / g,
    "collective-broadcast": lambda g: 1,
    "collective-permute": lambda g: 1,
}

# XLA for TPU spreads a collective over several fusions, so that it runs while they
# compute. It appears in each of them, and starts in the one where this number is -1.
_GOES_ON = re.compile(r'"async_collective_fusion_config":\{"flag_start":"\d')

# The axes of a collective between slices.
SLICES = ("slices",)


@dataclasses.dataclass(frozen=True)
class Operation:
    """The cost of an instruction that computes or moves memory.

    Attributes:
      name: the instruction's name.
      flops: FLOPs of its matrix products; a multiplication and an addition are two.
      bytes: bytes that it reads from the device's main memory and writes to it.
      count: how often it runs.
    """

    name: str
    flops: float
    bytes: float
    count: int


@dataclasses.dataclass(frozen=True)
class Collective:
    """The cost of a collective, by which devices communicate.

    Attributes:
      kind: such as "all-gather".
      axes: the axes of the mesh that it spans.
      payload: bytes of the full array: the input of a reduce-scatter, the output of an
        all-gather.
      sent: bytes that each device sends.
      count: how often it runs.
      source: the operation of the JAX program that it comes from.
    """

    kind: str
    axes: tuple[str, ...]
    payload: float
    sent: float
    count: int
    source: str

    @property
    def between_slices(self) -> bool:
        """Whether it goes over the network between slices."""
        return self.axes == SLICES


@dataclasses.dataclass(frozen=True)
class Costs:
    """The costs of one run of a program on one device.

    Attributes:
      operations: the instructions that compute or move memory.
      collectives: the instructions that communicate.
      unknown_loops: names of loops whose length is not constant; their bodies count
        once.
      kernels: names of Pallas kernels, whose products do not count.
    """

    operations: tuple[Operation, ...]
    collectives: tuple[Collective, ...]
    unknown_loops: tuple[str, ...]
    kernels: tuple[str, ...]

    @property
    def flops(self) -> float:
        """FLOPs of all matrix products."""
        return sum(each.flops * each.count for each in self.operations)

    @property
    def bytes(self) -> float:
        """Bytes read from main memory and written to it."""
        return sum(each.bytes * each.count for each in self.operations)

    def sent(self) -> dict[tuple[tuple[str, ...], str], float]:
        """Returns the bytes that each device sends, by (axes, kind)."""
        total = {}
        for each in self.collectives:
            at = each.axes, each.kind
            total[at] = total.get(at, 0.0) + each.sent * each.count
        return total


def count(text: str, mesh: Mapping[str, int], slices: int = 1) -> Costs:
    """Counts the costs of a program.

    FLOPs are those of dot and convolution only: other instructions are limited by
    memory, and products inside kernels are not seen. Bytes are those of operands and
    results in main memory; for a slice, only the part that is read or written. Padding
    to tiles does not count.

    Args:
      text: the program, as `compiled.as_text()` returns it.
      mesh: axis -> size, major to minor, in the order of its devices.
      slices: number of slices that the devices belong to, one after the other. The
        program is that of one slice, and what it sends to others has the axes `SLICES`.

    Raises:
      ValueError: if the text is not that of a program.
    """
    program = parse(text)
    counter = _Counter(program, mesh, slices)
    counter.run(program.computations[program.entry], 1)
    return Costs(
        tuple(counter.operations),
        tuple(counter.collectives),
        tuple(counter.unknown_loops),
        tuple(counter.kernels),
    )


class _Counter:
    """Collects costs while it walks through the computations of a program."""

    def __init__(self, program: Program, mesh: Mapping[str, int], slices: int):
        self._program = program
        self._mesh = dict(mesh)
        self._slices = slices
        self.operations = []
        self.collectives = []
        self.unknown_loops = []
        self.kernels = []

    def run(self, computation: Computation, times: int):
        for instruction in computation.instructions.values():
            called = instruction.called("calls") or instruction.called("to_apply")
            match instruction.opcode:
                case "while":
                    self._loop(computation, instruction, times)
                case "conditional":
                    self._conditional(instruction, times)
                case "call" | "async-start":
                    self.run(self._program.computations[called], times)
                case "fusion":
                    self._fused(instruction, times)
            self._collective(instruction, times)
            self._operation(computation, instruction, times)

    def _loop(self, computation, loop, times):
        trips = trip_count(self._program, computation, loop)
        if trips is None:
            self.unknown_loops.append(loop.name)
            trips = 1
        self.run(self._program.computations[loop.called("body")], times * trips)

    def _conditional(self, instruction, times):
        branches = []
        for name in instruction.branches():
            branch = _Counter(self._program, self._mesh, self._slices)
            branch.run(self._program.computations[name], times)
            branches.append(branch)

        def flops(branch):
            return sum(each.flops * each.count for each in branch.operations)

        heaviest = max(branches, key=flops)
        self.operations += heaviest.operations
        self.collectives += heaviest.collectives
        self.unknown_loops += heaviest.unknown_loops
        self.kernels += heaviest.kernels

    def _operation(self, computation, instruction, times):
        if matmul_flops.is_kernel(instruction):
            self.kernels.append(instruction.name)
        flops = matmul_flops.flops(self._program, computation, instruction)
        moved = traffic.traffic(self._program, computation, instruction)
        if flops or moved:
            self.operations.append(Operation(instruction.name, flops, moved, times))

    def _fused(self, fusion: Instruction, times: int):
        """Counts the collectives inside a fusion."""
        called = self._program.computations[fusion.called("calls")]
        scatters = called.name.startswith("all-reduce-scatter")
        for instruction in called.instructions.values():
            if instruction.opcode == "fusion":
                self._fused(instruction, times)
            if not _GOES_ON.search(instruction.attributes):
                self._collective(instruction, times, scatters)

    def _to_slices(self, send: Instruction, times: int):
        """Counts a collective between slices, which the hosts carry out."""
        kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', send.attributes)
        if kind is None:
            return
        kind = kind[1].lower().replace("_", "-")
        payload = send.shapes[0].bytes
        sent = payload * _SENT[kind](self._slices)
        self.collectives.append(
            Collective(kind, SLICES, payload, sent, times, send.source)
        )

    def _collective(self, instruction: Instruction, times: int, scatters=False):
        kind = instruction.opcode.removesuffix("-start")
        if kind == "send":
            self._to_slices(instruction, times)
        if kind not in _SENT:
            return
        # The shapes of a "-start" list operands and results.
        shapes = instruction.shapes
        if kind == "all-gather" and instruction.opcode.endswith("-start"):
            shapes = shapes[len(instruction.operands) :]
        if kind == "collective-permute":
            members = device_groups.pairs(instruction.attributes)
            shapes = shapes[:1]
        else:
            devices = math.prod(self._mesh.values()) // self._slices
            members = device_groups.replica_groups(instruction.attributes, devices)
        size = members.shape[1]
        payload = sum(shape.bytes for shape in shapes)
        if kind == "reduce-scatter":
            payload *= size
        if kind == "all-reduce" and scatters:
            kind = "reduce-scatter"
        self.collectives.append(
            Collective(
                kind=kind,
                axes=device_groups.axes(members, self._mesh),
                payload=payload,
                sent=payload * _SENT[kind](size),
                count=times,
                source=instruction.source,
            )
        )
