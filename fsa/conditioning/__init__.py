"""Functional parameter-space conditioning: parameters modulated by a latent.

Independent of the rest of fsa and of any library of models: `fsa/conditioning` and
`tests/conditioning`, copied together, need jax alone, in the versions that `compat.py`
names; `python -m pytest tests/conditioning` tests them.

Each file imports only from files above it in this list:

    leaf.py          the conditioned parameter, and operations that move its axes
    compat.py        what depends on the version of jax
    rows_dot.py      the product with an output factor, as a primitive
    program_cost.py  operations and bytes of a program
    dependence.py    which values of a program depend on the example
    mixed_scales.py  products with a scale that mixes contracted and other axes
    products.py      products, convolutions and look-ups, part by part
    rules.py         one rule for each primitive of jax
    custom_rules.py  rules of one's own, for primitives and functions
    hoisting.py      what of a loop's body can be done before the loop
    values.py        what is known of an array or a parameter in a program
    loops.py         what a loop's body need not do, and what its carry is
    uses.py          how parameters are used, and what a call costs
    evaluator.py     evaluates a program part by part
    bridge.py        runs a model that knows nothing of conditioned parameters
    operators.py     `@`, matmul, einsum, take and conv, for models that do
    spec.py          which parameters are modulated, and how
    layers.py        the axes of the layers of four libraries
    layouts.py       a model's layouts, from its layers
    hypernet.py      the hypernetwork, and what is done with its modulations
    adapters.py      one user's modulations as LoRA factors, and back
"""

from .bridge import bridge, report
from .custom_rules import matmul_rule, register_rule, with_rule
from .evaluator import MaterializationError
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
from .operators import conv, einsum, matmul, take
from .program_cost import Cost
from .spec import Modulation, lora, low_rank, parse, scale, shift
from .uses import Report, Use

__all__ = [
    "Conditioned",
    "Cost",
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
    "matmul_rule",
    "parse",
    "register_rule",
    "report",
    "scale",
    "shift",
    "take",
    "user_axes",
    "with_rule",
]
