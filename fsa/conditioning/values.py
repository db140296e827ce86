"""`Value`: an array or a conditioned parameter, and what is known of it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend import core

from .leaf import is_conditioned, scannable

# Primitives after which it is still known what a value is a broadcast of.
CONVERSIONS = {"broadcast_in_dim", "convert_element_type"}


@dataclasses.dataclass(frozen=True)
class Value:
    """An array or a conditioned parameter in the program.

    Attributes:
      data: the array or the `Conditioned`.
      per_example: whether it, or the w of a conditioned parameter, depends on the
        example, by its data or by a modulation.
      path: path of the parameter that it comes from, if it is conditioned.
      source: an array that `data` is a broadcast of, and the axes that it fills, if
        that is known.
      number: what every entry is, if that is known.
    """

    data: Any
    per_example: bool
    path: str = ""
    source: tuple[Any, Sequence[int]] | None = None
    number: float | None = None

    @property
    def is_lazy(self) -> bool:
        """Whether it is a conditioned parameter."""
        return is_conditioned(self.data)

    @property
    def is_zero(self) -> bool:
        """Whether every entry is known to be 0."""
        return self.number == 0

    @property
    def narrow(self) -> Any:
        """The array with axes of size 1 where it is known to be a broadcast."""
        if self.source is None:
            return self.data
        array, axes = self.source
        sizes = [1] * self.data.ndim
        for axis, size in zip(axes, array.shape, strict=True):
            sizes[axis] = size
        return array.reshape(sizes)

    def replace(self, data: Any, narrow: Any = None) -> "Value":
        """Returns other data that come from the same parameter and examples."""
        source = None if narrow is None else (narrow, range(narrow.ndim))
        return Value(data, self.per_example, self.path, source)

    def converted(self, eqn: core.JaxprEqn, data: Any) -> "Value":
        """The value after an equation that broadcasts or casts it."""
        name, params = eqn.primitive.name, eqn.params
        if name == "broadcast_in_dim":
            source = self.data, params["broadcast_dimensions"]
        elif name == "convert_element_type" and self.source is not None:
            source = self.source[0].astype(params["new_dtype"]), self.source[1]
        else:
            source = None
        number = self.number if name in CONVERSIONS else None
        return Value(data, self.per_example, self.path, source, number)


def read(env: dict[core.Var, Value], atom) -> Value:
    """Returns the value of a variable or a literal."""
    if isinstance(atom, core.Literal):
        number = np.asarray(atom.val, atom.aval.dtype)
        return Value(number, per_example=False, number=number.item())
    return env[atom]


def scannable_value(value: Value) -> Value:
    """Returns a value whose layers `lax.scan` can slice."""
    data = scannable(value.data) if value.is_lazy else value.data
    return dataclasses.replace(value, data=data)


def of_examples(arrays: Sequence[Any]) -> list[Value]:
    """Returns the values of arrays that depend on the example."""
    return [Value(x, per_example=True) for x in arrays]
