"""Ranges of config fields: the values that are allowed, in words and as a check."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from jax import checkpoint_policies

from fsa.data.sources.attributes import ATTRIBUTES
from fsa.errors import InputError
from fsa.language.huggingface import architecture
from fsa.language.poolings import PARTS, POOLINGS
from fsa.language.tokenization import template_arguments
from fsa.models.policy import spec_of


@dataclasses.dataclass(frozen=True)
class Range:
    """The values that a field allows.

    Attributes:
      text: the range in words that complete "must be ...".
      allows: returns whether a value is allowed, or a text that tells why it is not.
    """

    text: str
    allows: Callable[[Any], bool | str]


def number(low: float, high: float = math.inf) -> Range:
    """Makes the range of finite numbers from `low` to `high`."""
    return Range(_between("a number", low, high), lambda x: _in(x, low, high, float))


def whole_number(low: int, high: float = math.inf) -> Range:
    """Makes the range of whole numbers from `low` to `high`."""
    return Range(
        _between("a whole number", low, high), lambda x: _in(x, low, high, int)
    )


def _between(what: str, low: float, high: float) -> str:
    if math.isinf(high):
        return f"{what}, {low} or more"
    return f"{what} from {low} to {high}"


def _in(value: Any, low: float, high: float, kind: type) -> bool:
    kinds = (int, float) if kind is float else (int,)
    if isinstance(value, bool) or not isinstance(value, kinds):
        return False
    return low <= value <= high and math.isfinite(value)


def one_of(*values: Any) -> Range:
    """Makes the range of a few values."""
    return Range(f"one of {', '.join(map(repr, values))}", lambda x: x in values)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def growing(low: int, high: float = math.inf) -> Range:
    """Makes the range of ascending lists of different whole numbers from `low` up."""

    def allows(value):
        integers = _is_list(value) and all(_in(n, low, high, int) for n in value)
        return bool(integers and value and list(value) == sorted(set(value)))

    return Range(_between("an ascending list of whole numbers", low, high), allows)


def _allows_modulations(value):
    try:
        spec_of(value)
    except (TypeError, ValueError) as error:
        return str(error)
    return True


def _allows_shape(value):
    if not _is_list(value):
        return False
    try:
        architecture.arguments(dict(value), "shape") if value else None
    except (TypeError, ValueError, InputError) as error:
        return str(error)
    return True


def _allows_template_arguments(value):
    try:
        return isinstance(value, str) and template_arguments(value) is not None
    except InputError:
        return False


FLAG = Range("true or false", lambda x: isinstance(x, bool))
TEXT = Range("a text", lambda x: isinstance(x, str))
PATH = Range("a path", lambda x: isinstance(x, str) and bool(x))
PATH_OR_NONE = Range('a path, or ""', lambda x: isinstance(x, str))
POSITIVE = Range("a number above 0", lambda x: _in(x, 1e-12, math.inf, float))
BELOW_ONE = Range("a number from 0 to below 1", lambda x: _in(x, 0, 1 - 1e-9, float))
SHARE = number(0, 1)
WIDTHS = Range(
    "a list of whole numbers, 1 or more",
    lambda x: _is_list(x) and all(_in(n, 1, math.inf, int) for n in x),
)
MODULATIONS = Range(
    "a list of (linear map of a layer, modulation)", _allows_modulations
)
SHAPE = Range("a list of (field of config.json, value)", _allows_shape)
ATTRIBUTE_LIST = Range(
    f"a list of {', '.join(ATTRIBUTES)}",
    lambda x: _is_list(x) and set(x) <= set(ATTRIBUTES),
)
ATTRIBUTE_NAMES = Range(
    f'"", or of {", ".join(ATTRIBUTES)} one or several with commas',
    lambda x: isinstance(x, str) and (not x or set(x.split(",")) <= set(ATTRIBUTES)),
)
NUMBERS = Range(
    "a list of numbers from 0 to 2",
    lambda x: _is_list(x) and all(_in(y, 0, 2, float) for y in x),
)
POOLING = Range(
    f"one or several of {', '.join(PARTS)}, joined by _and_ in this order",
    lambda x: x in POOLINGS,
)
TEMPLATE_ARGUMENTS = Range('a JSON object as text, or ""', _allows_template_arguments)
REMAT = Range(
    'the name of a policy in jax.checkpoint_policies, or ""',
    lambda x: x == "" or (isinstance(x, str) and hasattr(checkpoint_policies, x)),
)
