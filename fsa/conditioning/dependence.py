"""Decides which values of a program depend on the example, and which all share.

A flag stands for each value: true if it depends on the data of one example of a batch,
false if it is the same for all examples.
"""

from collections.abc import Sequence

from jax.extend import core

from . import compat


def dependent_outputs(eqn: core.JaxprEqn, flags: Sequence[bool]) -> list[bool]:
    """Returns for each output of an equation whether it depends on a flagged input."""
    name = eqn.primitive.name
    if name in compat.CALLS or name in compat.REMAT:
        return dependent_jaxpr_outputs(compat.call_jaxpr(eqn), flags)
    if name == "cond":
        branches = [
            dependent_jaxpr_outputs(b, flags[1:]) for b in eqn.params["branches"]
        ]
        return [flags[0] or any(outs) for outs in zip(*branches, strict=True)]
    if name == "scan":
        body, num_consts, num_carry, _ = compat.scan_parts(eqn)
        carry = dependent_carries(body, num_consts, num_carry, flags)
        before, after = flags[:num_consts], flags[num_consts + num_carry :]
        return dependent_jaxpr_outputs(body, [*before, *carry, *after])
    if name == "while":
        cond, num_cond, body, num_body = compat.while_parts(eqn)
        carry = dependent_carries(body, num_body, len(eqn.outvars), flags[num_cond:])
        # If the number of iterations depends on the example, so does every carry.
        test = dependent_jaxpr_outputs(cond, [*flags[:num_cond], *carry])
        return [flag or test[0] for flag in carry]
    return [any(flags)] * len(eqn.outvars)


def dependent_jaxpr_outputs(
    jaxpr: core.ClosedJaxpr, flags: Sequence[bool]
) -> list[bool]:
    """Returns for each output of a jaxpr whether it depends on a flagged input."""
    dependent = {
        var
        for var, const in zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True)
        if compat.is_tracer(const)
    }
    dependent |= {var for var, f in zip(jaxpr.jaxpr.invars, flags, strict=True) if f}

    def flagged(atoms):
        return [isinstance(a, core.Var) and a in dependent for a in atoms]

    for eqn in jaxpr.jaxpr.eqns:
        outs = dependent_outputs(eqn, flagged(eqn.invars))
        dependent |= {var for var, f in zip(eqn.outvars, outs, strict=True) if f}
    return flagged(jaxpr.jaxpr.outvars)


def dependent_carries(
    body: core.ClosedJaxpr, num_consts: int, num_carry: int, flags: Sequence[bool]
) -> list[bool]:
    """Returns for each carry of a loop whether it ever depends on a flagged input.

    Args:
      body: the jaxpr of one iteration: takes constants, carries and slices, and returns
        the carries first.
      num_consts: number of constants.
      num_carry: number of carries.
      flags: flags of the loop's inputs, in the order of the body's.
    """
    flags = list(flags)
    carries = slice(num_consts, num_consts + num_carry)
    while True:
        outs = dependent_jaxpr_outputs(body, flags)[:num_carry]
        joined = [a or b for a, b in zip(flags[carries], outs, strict=True)]
        if joined == flags[carries]:
            return joined
        flags[carries] = joined
