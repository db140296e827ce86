"""Finds how often the loops of a compiled program run.

XLA for CPU and GPU writes a loop's trip count beside the loop. For TPU the count is
derived from the loop's condition, which works for every `lax.scan` and every
`lax.fori_loop` of constant length.
"""

import re
from typing import NamedTuple

from fsa.cost_model.hlo_text import Computation, Instruction, Program

_KNOWN = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_SAME_VALUE = {"copy", "bitcast", "convert", "reshape", "copy-done", "copy-start"}
_FLIPPED = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE", "NE": "NE"}


class _Value(NamedTuple):
    """An instruction; inside a fusion, together with the fusion's operands."""

    computation: Computation
    instruction: Instruction
    given: "tuple[_Value, ...]" = ()

    def operand(self, i: int) -> "_Value":
        name = self.instruction.operands[i]
        return self._replace(instruction=self.computation.instructions[name])


def trip_count(program: Program, caller: Computation, loop: Instruction) -> int | None:
    """Returns how often a while loop runs its body, or None if that is not constant.

    Args:
      program: the program.
      caller: the computation that contains the loop.
      loop: the loop's instruction.
    """
    if known := _KNOWN.search(loop.attributes):
        return int(known[1])
    return _Loop(program, caller, loop).trips()


class _Loop:
    """A loop over a tuple, one element of which counts: i < limit, i += step."""

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
        """Follows a value back through copies, fusions and tuples to its origin."""
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
            source = self._origin(value.operand(0))
            if source.instruction.opcode == "tuple":
                return source.operand(instruction.index)
        return None

    def _element(self, value: _Value) -> int | None:
        """Returns the index of a value in the loop's tuple; None if it is not in it."""
        if value.instruction.opcode != "get-tuple-element":
            return None
        source = self._origin(value.operand(0))
        of_loop = source.computation in (self._condition, self._body)
        is_state = source.instruction.opcode == "parameter" and of_loop
        return value.instruction.index if is_state else None

    def _after(self, element: int) -> _Value | None:
        """Returns the value of an element of the tuple after the loop's body."""
        root = self._origin(_root(self._body))
        if root.instruction.opcode != "tuple":
            return None
        return self._origin(root.operand(element))

    def _step(self, counter: _Value) -> int | None:
        """Returns what the body adds to a counter; None if that is not constant."""
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
        """Returns a value that is a constant, or that the body leaves unchanged."""
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
        """Returns the value of an element before the loop; None if not constant."""
        if element is None or self._before.instruction.opcode != "tuple":
            return None
        first = self._origin(self._before.operand(element))
        return self._constant(first) if first.instruction.opcode == "constant" else None


def _root(computation: Computation, given: tuple[_Value, ...] = ()) -> _Value:
    return _Value(computation, computation.instructions[computation.root], given)
