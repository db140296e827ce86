"""How often the loops of a compiled program run.

XLA for CPU and GPU writes a loop's trip count beside it; for TPU it is read from the
loop's condition, as for every `lax.scan` and `lax.fori_loop` of constant length.
"""

import re
from typing import NamedTuple

from fsa.cost_model.hlo_text import Computation, Instruction, Program

_KNOWN = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_SAME_VALUE = {"copy", "bitcast", "convert", "reshape", "copy-done", "copy-start"}
_FLIPPED = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE", "NE": "NE"}


class _Value(NamedTuple):
    """An instruction, and inside of a fusion the values that it was given."""

    computation: Computation
    instruction: Instruction
    given: "tuple[_Value, ...]" = ()

    def operand(self, i: int) -> "_Value":
        name = self.instruction.operands[i]
        return self._replace(instruction=self.computation.instructions[name])


def trip_count(program: Program, caller: Computation, loop: Instruction) -> int | None:
    """How often a while loop runs its body; None if that is not constant.

    Args:
      program: the whole.
      caller: the computation that the loop stands in.
      loop: its instruction.
    """
    if known := _KNOWN.search(loop.attributes):
        return int(known[1])
    return _Loop(program, caller, loop).trips()


class _Loop:
    """A loop over a tuple whose element i counts: i < limit, i += step."""

    def __init__(self, program, caller, loop):
        self._program = program
        self._condition = program.computations[loop.called("condition")]
        self._body = program.computations[loop.called("body")]
        self._before = self._origin(_Value(caller, loop).operand(0))

    def trips(self) -> int | None:
        compare = self._origin(_root(self._condition))
        if compare.instruction.opcode != "compare":
            return None
        direction = re.search(r"direction=(\w+)", compare.instruction.attributes)[1]
        counter, limit = (self._origin(compare.operand(i)) for i in (0, 1))
        if self._element(counter) is None or self._step(counter) is None:
            counter, limit, direction = limit, counter, _FLIPPED.get(direction)
        step, limit = self._step(counter), self._constant(limit)
        start = self._initial(self._element(counter))
        if None in (step, limit, start) or direction not in _FLIPPED:
            return None
        if direction in ("LE", "GE"):
            limit += 1 if step > 0 else -1
        return len(range(start, limit, step)) if step else None

    def _origin(self, value: _Value) -> _Value:
        """Where a value comes from, past copies, fusions and tuples."""
        while True:
            past = self._past(value)
            if past is None:
                return value
            value = past

    def _past(self, value: _Value) -> _Value | None:
        instruction = value.instruction
        if instruction.opcode in _SAME_VALUE:
            return value.operand(0)
        if instruction.opcode == "fusion":
            called = self._program.computations[instruction.called("calls")]
            given = [value.operand(i) for i in range(len(instruction.operands))]
            return _root(called, tuple(given))
        if instruction.opcode == "parameter" and value.given:
            return value.given[int(instruction.argument)]
        if instruction.opcode == "get-tuple-element":
            whole = self._origin(value.operand(0))
            if whole.instruction.opcode == "tuple":
                return whole.operand(instruction.index)
        return None

    def _element(self, value: _Value) -> int | None:
        """Which element of the loop's tuple a value is."""
        if value.instruction.opcode != "get-tuple-element":
            return None
        whole = self._origin(value.operand(0))
        of_loop = whole.computation in (self._condition, self._body)
        is_state = whole.instruction.opcode == "parameter" and of_loop
        return value.instruction.index if is_state else None

    def _after(self, element: int) -> _Value | None:
        """What the body makes of an element."""
        root = self._origin(_root(self._body))
        if root.instruction.opcode != "tuple":
            return None
        return self._origin(root.operand(element))

    def _step(self, counter: _Value) -> int | None:
        """What the body adds to a counter."""
        element = self._element(counter)
        after = None if element is None else self._after(element)
        if after is None or after.instruction.opcode not in ("add", "subtract"):
            return None
        first, second = (self._origin(after.operand(i)) for i in (0, 1))
        if self._element(first) == element:
            step = self._constant(second)
        elif self._element(second) == element and after.instruction.opcode == "add":
            step = self._constant(first)
        else:
            return None
        is_sum = after.instruction.opcode == "add"
        return step if step is None or is_sum else -step

    def _constant(self, value: _Value) -> int | None:
        """A number, written there or left unchanged by the body."""
        if value.instruction.opcode == "constant":
            number = re.fullmatch(r"-?\d+", value.instruction.argument)
            return number and int(number[0])
        element = self._element(value)
        if element is None:
            return None
        after = self._after(element)
        unchanged = after is not None and self._element(after) == element
        return self._initial(element) if unchanged else None

    def _initial(self, element: int | None) -> int | None:
        if element is None or self._before.instruction.opcode != "tuple":
            return None
        first = self._origin(self._before.operand(element))
        return self._constant(first) if first.instruction.opcode == "constant" else None


def _root(computation: Computation, given: tuple[_Value, ...] = ()) -> _Value:
    return _Value(computation, computation.instructions[computation.root], given)
