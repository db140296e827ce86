"""Counts what a compiled program does on one device: FLOPs, bytes, collectives.

Every loop body counts as often as it runs, which `Compiled.cost_analysis` does not do;
of a conditional the branch with the most FLOPs counts.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

import numpy as np

from fsa.training.compiled import groups
from fsa.training.compiled.loops import trip_count
from fsa.training.compiled.text import Computation, Instruction, Program, Shape, parse

# What one device sends of an array of g shares, by algorithms that use all links.
_SENT = {
    "all-gather": lambda g: (g - 1) / g,
    "reduce-scatter": lambda g: (g - 1) / g,
    "all-reduce": lambda g: 2 * (g - 1) / g,
    "all-to-all": lambda g: (g - 1) / g,
    "ragged-all-to-all": lambda g: (g - 1) / g,
    "collective-broadcast": lambda g: 1,
    "collective-permute": lambda g: 1,
}

# The axes of what goes from slice to slice.
SLICES = ("slices",)

# They move nothing themselves, or what they move is counted elsewhere.
_FREE = frozenset(
    """
    parameter constant tuple get-tuple-element bitcast while call conditional
    async-start async-update async-done copy-done slice-done dynamic-slice-done
    after-all send send-done recv recv-done partition-id replica-id
    optimization-barrier add-dependency domain
    """.split()
)
_FREE_TARGETS = ("AllocateBuffer", "ConcatBitcast", "Sharding", "AssumeGatherIndices")
_SLICES = {"slice", "dynamic-slice", "gather"}
_VIEWS = {"bitcast", "reshape"}


@dataclasses.dataclass(frozen=True)
class Operation:
    """An instruction that takes time by itself.

    Attributes:
      name: of the instruction.
      flops: of its matrix products, a multiplication and an addition each.
      bytes: it reads from the device's main memory and writes to it.
      count: how often it runs.
    """

    name: str
    flops: float
    bytes: float
    count: int


@dataclasses.dataclass(frozen=True)
class Collective:
    """Communication between devices.

    Attributes:
      kind: such as "all-gather".
      axes: of the mesh, that it spans.
      payload: bytes of the whole array, the one before a reduce-scatter and behind an
        all-gather.
      sent: bytes that each device sends.
      count: how often it runs.
      source: the operation of the JAX program that it came from.
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
    """Of one run of a program on one device.

    Attributes:
      operations: what computes or moves memory.
      collectives: what communicates.
      unknown_loops: names of loops whose length is not constant, counted once.
    """

    operations: tuple[Operation, ...]
    collectives: tuple[Collective, ...]
    unknown_loops: tuple[str, ...]

    @property
    def flops(self) -> float:
        """Of all matrix products."""
        return sum(each.flops * each.count for each in self.operations)

    @property
    def bytes(self) -> float:
        """Of all traffic with main memory."""
        return sum(each.bytes * each.count for each in self.operations)

    def sent(self) -> dict[tuple[tuple[str, ...], str], float]:
        """(axes, kind) -> bytes that each device sends."""
        total = {}
        for each in self.collectives:
            at = each.axes, each.kind
            total[at] = total.get(at, 0.0) + each.sent * each.count
        return total


def count(text: str, mesh: Mapping[str, int], slices: int = 1) -> Costs:
    """The costs of a program.

    FLOPs are those of dot and convolution alone: others are bound by memory. A kernel
    of its own (a custom call) counts what it says of itself. Bytes are those of
    operands and results in main memory, of slices what is read or written of them;
    padding to tiles is left out.

    Args:
      text: of the program, `compiled.as_text()`.
      mesh: axis -> size, major to minor, in the order of its devices.
      slices: of devices, one behind the other. The program is that of one slice, and
        what it sends to others has the axes `SLICES`.

    Raises:
      ValueError: if the text is no program.
    """
    program = parse(text)
    counter = _Counter(program, mesh, slices)
    counter.run(program.computations[program.entry], 1)
    return Costs(
        tuple(counter.operations),
        tuple(counter.collectives),
        tuple(counter.unknown_loops),
    )


class _Counter:
    """Follows a program from computation to computation."""

    def __init__(self, program: Program, mesh: Mapping[str, int], slices: int):
        self._program = program
        self._mesh = dict(mesh)
        self._slices = slices
        self.operations = []
        self.collectives = []
        self.unknown_loops = []

    def run(self, computation: Computation, times: int):
        # TPU spreads one collective over several fusions, which share its channel.
        fused_channels = set()
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
                    self._fused(instruction, times, fused_channels)
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

    def _operation(self, computation, instruction, times):
        flops = self._flops(computation, instruction)
        moved = self._traffic(computation, instruction)
        if flops or moved:
            self.operations.append(Operation(instruction.name, flops, moved, times))

    # Collectives.

    def _fused(self, fusion: Instruction, times: int, channels: set[str]):
        """The collectives inside of a fusion; `channels` are those counted before."""
        called = self._program.computations[fusion.called("calls")]
        scatters = called.name.startswith("all-reduce-scatter")
        for instruction in called.instructions.values():
            if instruction.opcode == "fusion":
                self._fused(instruction, times, channels)
            channel = re.search(r"channel_id=(\d+)", instruction.attributes)
            if channel and channel[1] not in channels:
                channels.add(channel[1])
                self._collective(instruction, times, scatters)

    def _to_slices(self, send: Instruction, times: int):
        """What one slice sends to others: a collective that is done by the hosts."""
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
        # A start gives operands and results.
        shapes = instruction.shapes
        if kind == "all-gather" and instruction.opcode.endswith("-start"):
            shapes = shapes[len(instruction.operands) :]
        if kind == "collective-permute":
            members = groups.pairs(instruction.attributes)
            shapes = shapes[:1]
        else:
            devices = math.prod(self._mesh.values()) // self._slices
            members = groups.replica_groups(instruction.attributes, devices)
        size = members.shape[1]
        payload = sum(shape.bytes for shape in shapes)
        if kind == "reduce-scatter":
            payload *= size
        if kind == "all-reduce" and scatters:
            kind = "reduce-scatter"
        self.collectives.append(
            Collective(
                kind=kind,
                axes=groups.axes(members, self._mesh),
                payload=payload,
                sent=payload * _SENT[kind](size),
                count=times,
                source=instruction.source,
            )
        )

    # FLOPs.

    def _flops(self, computation: Computation, instruction: Instruction) -> float:
        match instruction.opcode:
            case "dot":
                return _dot_flops(computation, instruction)
            case "convolution":
                return _convolution_flops(computation, instruction)
            case "fusion":
                called = self._program.computations[instruction.called("calls")]
                return sum(self._flops(called, i) for i in called.instructions.values())
            case "custom-call":
                said = re.search(r'"flops":"?(\d+)', instruction.attributes)
                return float(said[1]) if said else 0.0
        return 0.0

    # Traffic with main memory.

    def _traffic(self, computation: Computation, instruction: Instruction) -> float:
        opcode = instruction.opcode
        if opcode in _FREE or any(t in instruction.attributes for t in _FREE_TARGETS):
            return 0.0
        if opcode.endswith("-done"):
            return 0.0
        if opcode == "fusion":
            called = self._program.computations[instruction.called("calls")]
            return self._written(called, called.root) + sum(
                self._read(called, parameter.name)
                for parameter in called.parameters.values()
            )
        if opcode in _SLICES:
            return 2 * _in_memory(instruction.shapes)
        if opcode == "dynamic-update-slice":
            update = computation.instructions[instruction.operands[1]]
            return 2 * _in_memory(update.shapes)
        if opcode.endswith("-start"):
            # Of a copy or a slice into faster memory, or back.
            moved = instruction.shapes[0 if opcode == "copy-start" else 1]
            return float(moved.bytes)
        read = (computation.instructions[name].shapes for name in instruction.operands)
        return _in_memory(instruction.shapes) + sum(map(_in_memory, read))

    def _read(self, computation: Computation, name: str) -> float:
        """Bytes that a fused computation reads of one of its values."""
        whole = _in_memory(computation.instructions[name].shapes)
        if not whole:
            return 0.0
        parts = (self._read_by(computation, u, name) for u in computation.users[name])
        return min(whole, sum(parts))

    def _read_by(self, computation, user: Instruction, name: str) -> float:
        whole = computation.instructions[name].shapes
        if user.opcode in _SLICES and user.operands[0] == name:
            return sum(shape.bytes for shape in user.shapes)
        if user.opcode == "dynamic-update-slice" and user.operands[0] == name:
            return 0.0
        if user.opcode in _VIEWS:
            users = computation.users[user.name]
            if not users:
                return sum(shape.bytes for shape in whole)
            return sum(self._read_by(computation, u, user.name) for u in users)
        if user.opcode == "fusion":
            called = self._program.computations[user.called("calls")]
            return sum(
                self._read_by(called, inner, parameter.name)
                for number, parameter in called.parameters.items()
                if user.operands[number] == name
                for inner in called.users[parameter.name]
            )
        return sum(shape.bytes for shape in whole)

    def _written(self, computation: Computation, name: str) -> float:
        """Bytes that a fused computation writes of one of its values."""
        instruction = computation.instructions[name]
        if instruction.opcode == "tuple":
            return sum(
                self._written(computation, each) for each in instruction.operands
            )
        if not _in_memory(instruction.shapes) or instruction.opcode == "parameter":
            return 0.0
        if instruction.opcode in _VIEWS:
            return self._written(computation, instruction.operands[0])
        if instruction.opcode == "dynamic-update-slice":
            update = computation.instructions[instruction.operands[1]]
            return sum(shape.bytes for shape in update.shapes)
        return _in_memory(instruction.shapes)


def _in_memory(shapes: tuple[Shape, ...]) -> float:
    """Bytes of those that lie in main memory."""
    return float(sum(shape.bytes for shape in shapes if not shape.space))


def _dot_flops(computation: Computation, dot: Instruction) -> float:
    left = computation.instructions[dot.operands[0]].shapes[0]
    contracted = dot.integers("lhs_contracting_dims")
    return 2.0 * dot.shapes[0].size * math.prod(left.dims[i] for i in contracted)


def _convolution_flops(computation: Computation, convolution: Instruction) -> float:
    """Of a convolution, in whose form TPU has all matrix products.

    As XLA counts (HloCostAnalysis::HandleConvolution): padding and holes cost nothing,
    so that batch axes in the form of a window count once.
    """
    attributes = convolution.attributes
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes).groups()
    left, right = (
        computation.instructions[name].shapes[0].dims
        for name in convolution.operands[:2]
    )
    sides = zip(labels, (left, right, convolution.shapes[0].dims), strict=True)
    left, right, out = (dict(zip(names, dims, strict=True)) for names, dims in sides)
    batches = re.search(r"batch_group_count=(\d+)", attributes)
    pairs = left["b"] // (int(batches[1]) if batches else 1) * right["i"] * right["o"]
    window = _window(attributes)
    spatial = (axis for axis in left if axis.isdigit())
    for axis, each in zip(sorted(spatial), window, strict=True):
        pairs *= _valid_positions(left[axis], right[axis], out[axis], each)
    return 2.0 * pairs


def _window(attributes: str) -> Iterator[tuple[int, int, int, int]]:
    """(stride, padding before, dilation of the input, of the window) of each axis."""
    found = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(f.split("=") for f in found[1].split()) if found else {}
    rank = len(fields["size"].split("x")) if fields else 0

    def of(name, default):
        values = fields[name].split("x") if name in fields else [default] * rank
        return [int(value.split("_")[0]) for value in values]

    return zip(
        of("stride", "1"),
        of("pad", "0_0"),
        of("lhs_dilate", "1"),
        of("rhs_dilate", "1"),
        strict=True,
    )


@functools.cache
def _valid_positions(input_size, window_size, output_size, window) -> int:
    """Pairs of an output and a window position that meet an element of the input."""
    stride, padding, dilation, window_dilation = window
    at = stride * np.arange(output_size)[:, None] - padding
    at = at + window_dilation * np.arange(window_size)
    inside = (at >= 0) & (at <= (input_size - 1) * dilation)
    return int((inside & (at % dilation == 0)).sum())
