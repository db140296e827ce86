"""Functional parameter-space conditioning: parameters modulated by a latent.

Independent of the rest of fsa, and of any library of models: copied as
`fsa/conditioning` and `tests/conditioning`, it needs jax alone, in the versions that
`compat.py` names, and `python -m pytest tests/conditioning` tests it.
"""

from .bridge import MaterializationError, Report, Use, bridge, report
from .helpers import conv, einsum, matmul, take
from .hypernet import (
    Hypernet,
    Modulations,
    condition,
    describe,
    fold,
    hypernet,
    interpolate,
    user_axes,
)
from .leaf import Conditioned, Delta, NotSeparable, is_conditioned
from .spec import Modulation, lora, low_rank, parse, scale, shift

__all__ = [
    "Conditioned",
    "Delta",
    "Hypernet",
    "MaterializationError",
    "Modulation",
    "Modulations",
    "NotSeparable",
    "Report",
    "Use",
    "bridge",
    "condition",
    "conv",
    "describe",
    "einsum",
    "fold",
    "hypernet",
    "interpolate",
    "is_conditioned",
    "lora",
    "low_rank",
    "matmul",
    "parse",
    "report",
    "scale",
    "shift",
    "take",
    "user_axes",
]
