"""What of a loop's body can be done before the loop, or at once, as its jaxpr shows.

A recurrent net multiplies its inputs, and its state, by weights in each step. What
follows from the weights alone (the kernels of the gates joined, a cast) is computed
once before the loop. Products with the inputs do not depend on the state: they are one
product for all steps. Products of one array, such as the state, with several weights
(the gates) are one product with the weights joined.
"""

import math
from collections.abc import Callable, Iterable, Sequence

from jax.extend import core

from .program_cost import inner_jaxprs

# Mapped over all steps, these draw other numbers, are refused, or do more: each step
# then takes all branches, and as many turns as the longest.
STEPWISE = {
    *("pure_callback", "custom_vmap_call", "cond", "while"),
    *("random_bits", "rng_bit_generator", "rng_uniform"),
}
# Bytes that products done before the loop may store, as a multiple of what the loop
# itself reads and writes in each step. Four gates of an LSTM need twice as much.
MOST_STORED = 4


def slice_of(
    eqns: Iterable[core.JaxprEqn], wanted: Iterable[core.Var]
) -> list[core.JaxprEqn]:
    """Returns the equations that variables are computed by, in their order."""
    needed, found = set(wanted), []
    for eqn in reversed(list(eqns)):
        if not needed.isdisjoint(eqn.outvars):
            found.append(eqn)
            needed |= set(_variables(eqn))
    return found[::-1]


def following_from(
    eqns: Iterable[core.JaxprEqn], known: Iterable[core.Var]
) -> list[core.JaxprEqn]:
    """Returns the equations that need nothing but known variables and one another."""
    known, found = set(known), []
    for eqn in eqns:
        if known.issuperset(_variables(eqn)) and not eqn.effects:
            known |= set(eqn.outvars)
            found.append(eqn)
    return found


def acts_alike_mapped(eqn: core.JaxprEqn) -> bool:
    """Whether an equation gives the same for all steps at once, at the same cost."""
    if eqn.primitive.name in STEPWISE:
        return False
    inner = (e for jaxpr in inner_jaxprs(eqn) for e in jaxpr.jaxpr.eqns)
    return all(map(acts_alike_mapped, inner))


def touched(
    eqns: Iterable[core.JaxprEqn], variables: Iterable[core.Var]
) -> list[core.Var]:
    """Returns the outputs of equations that depend on some of the variables."""
    reached, found = set(variables), []
    for eqn in eqns:
        if not reached.isdisjoint(_variables(eqn)):
            reached |= set(eqn.outvars)
            found += eqn.outvars
    return found


def products(
    eqns: Iterable[core.JaxprEqn], is_weight: Callable[[core.Var], bool]
) -> list[tuple[core.JaxprEqn, core.Var, core.Var]]:
    """Returns each product of an array and a weight: (equation, array, weight)."""
    found = []
    for eqn in eqns:
        if eqn.primitive.name != "dot_general":
            continue
        left, right = eqn.invars
        flags = [isinstance(v, core.Var) and is_weight(v) for v in (left, right)]
        if flags == [True, False] and isinstance(right, core.Var):
            found.append((eqn, right, left))
        if flags == [False, True] and isinstance(left, core.Var):
            found.append((eqn, left, right))
    return found


def frontier(
    eqns: Sequence[core.JaxprEqn],
    free: Sequence[core.JaxprEqn],
    products: Sequence[core.Var],
    outputs: Iterable[core.Var],
) -> list[core.Var]:
    """Returns what the loop needs of the products done before it.

    That is what follows from them without the state, such as the parts of a product for
    each gate: a step that slices a product of all steps and splits it is slow on CPUs.

    Args:
      eqns: all equations of the body.
      free: those that need no state.
      products: outputs of products.
      outputs: outputs of the body.
    """
    done = {id(eqn) for eqn in free}
    used = {v for eqn in eqns if id(eqn) not in done for v in _variables(eqn)}
    used |= {v for v in outputs if isinstance(v, core.Var)}
    return [v for v in [*products, *touched(free, products)] if v in used]


def affordable(
    wanted: Sequence[core.Var],
    free: Sequence[core.JaxprEqn],
    streamed: Iterable[core.Var],
) -> list[core.Var]:
    """Drops variables whose arrays for all steps would need too much memory.

    Args:
      wanted: what would be computed before the loop, for one step.
      free: the equations that it is computed by.
      streamed: what the loop reads and writes in one step.
    """
    most = MOST_STORED * sum(map(_bytes, streamed))
    left, kept = most, []
    for var in wanted:
        steps = [v for eqn in slice_of(free, [var]) for v in eqn.outvars]
        if _bytes(var) <= left and max(map(_bytes, steps), default=0) <= most:
            left -= _bytes(var)
            kept.append(var)
    return kept


def left(
    eqns: Sequence[core.JaxprEqn],
    known: Iterable[core.Var],
    outputs: Iterable[core.Var],
) -> list[core.JaxprEqn]:
    """Returns the equations that outputs, or effects, still need beside known ones."""
    known, found = set(known), []
    needed = {v for v in outputs if isinstance(v, core.Var)} - known
    for eqn in reversed(eqns):
        if eqn.effects or not needed.isdisjoint(eqn.outvars):
            found.append(eqn)
            needed |= set(_variables(eqn)) - known
    return found[::-1]


def alike(found) -> list[list[tuple]]:
    """Groups products of the same array, along the same axes of all weights."""
    groups: dict[tuple, list] = {}
    for eqn, array, weight in found:
        params = tuple(sorted((k, repr(v)) for k, v in eqn.params.items()))
        groups.setdefault((array, eqn.invars[0] is weight, params), []).append(
            (eqn, array, weight)
        )
    return [group for group in groups.values() if len(group) > 1]


def _variables(eqn: core.JaxprEqn) -> list[core.Var]:
    return [v for v in eqn.invars if isinstance(v, core.Var)]


def _bytes(var: core.Var) -> int:
    aval = var.aval
    return math.prod(aval.shape) * getattr(aval.dtype, "itemsize", 4)
