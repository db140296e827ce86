"""Bytes that a compiled program reads from main memory and writes to it."""

from fsa.cost_model.hlo_text import Computation, Instruction, Program, Shape

# These move nothing themselves, or what they move is counted elsewhere.
_FREE = frozenset(
    """
    parameter constant tuple get-tuple-element bitcast while call conditional
    async-start async-update async-done after-all send recv partition-id replica-id
    optimization-barrier add-dependency domain
    """.split()
)
_FREE_CALLS = (
    'custom_call_target="AllocateBuffer"',
    'custom_call_target="ConcatBitcast"',
)
_SLICES = {"slice", "dynamic-slice", "gather"}
_VIEWS = {"bitcast", "reshape"}


def traffic(
    program: Program, computation: Computation, instruction: Instruction
) -> float:
    """Returns the bytes of main memory that an instruction reads and writes.

    For the arguments see `fsa.cost_model.matmul_flops.flops`.
    """
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith("-done"):
        return 0.0
    if any(target in instruction.attributes for target in _FREE_CALLS):
        return 0.0
    if opcode == "fusion":
        called = program.computations[instruction.called("calls")]
        return _written(program, called, called.root) + sum(
            _read(program, called, parameter.name)
            for parameter in called.parameters.values()
        )
    if opcode in _SLICES:
        return 2 * _in_memory(instruction.shapes)
    if opcode == "dynamic-update-slice":
        update = computation.instructions[instruction.operands[1]]
        return 2 * _in_memory(update.shapes)
    if opcode.endswith("-start"):
        # The shapes list the operands first and then the arrays that are moved to or
        # from another memory or device; a copy names the moved array first.
        shapes = instruction.shapes
        if opcode == "copy-start":
            return float(shapes[0].bytes)
        moved = shapes[len(instruction.operands) :] or shapes
        return float(sum(shape.bytes for shape in moved))
    read = (computation.instructions[name].shapes for name in instruction.operands)
    return _in_memory(instruction.shapes) + sum(map(_in_memory, read))


def _read(program: Program, computation: Computation, name: str) -> float:
    """Returns the bytes that a fused computation reads of one of its values."""
    total = _in_memory(computation.instructions[name].shapes)
    if not total:
        return 0.0
    parts = (_read_by(program, computation, u, name) for u in computation.users[name])
    return min(total, sum(parts))


def _read_by(program: Program, computation, user: Instruction, name: str) -> float:
    """Returns the bytes of a value that one of its users reads."""
    shapes = computation.instructions[name].shapes
    if user.opcode in _SLICES and user.operands[0] == name:
        return sum(shape.bytes for shape in user.shapes)
    if user.opcode == "dynamic-update-slice" and user.operands[0] == name:
        return 0.0
    if user.opcode in _VIEWS:
        users = computation.users[user.name]
        if not users:
            return sum(shape.bytes for shape in shapes)
        return sum(_read_by(program, computation, u, user.name) for u in users)
    if user.opcode == "fusion":
        called = program.computations[user.called("calls")]
        return sum(
            _read_by(program, called, inner, parameter.name)
            for number, parameter in called.parameters.items()
            if user.operands[number] == name
            for inner in called.users[parameter.name]
        )
    return sum(shape.bytes for shape in shapes)


def _written(program: Program, computation: Computation, name: str) -> float:
    """Returns the bytes that a fused computation writes of one of its values."""
    instruction = computation.instructions[name]
    if instruction.opcode == "tuple":
        return sum(
            _written(program, computation, each) for each in instruction.operands
        )
    if not _in_memory(instruction.shapes) or instruction.opcode == "parameter":
        return 0.0
    if instruction.opcode in _VIEWS:
        return _written(program, computation, instruction.operands[0])
    if instruction.opcode == "dynamic-update-slice":
        update = computation.instructions[instruction.operands[1]]
        return sum(shape.bytes for shape in update.shapes)
    return _in_memory(instruction.shapes)


def _in_memory(shapes: tuple[Shape, ...]) -> float:
    """Returns the bytes of the arrays that are in main memory."""
    return float(sum(shape.bytes for shape in shapes if not shape.space))
