"""Which values of a program derive from a row's data, and which are shared by all."""

from collections.abc import Sequence

from jax.extend import core

from . import compat


def row_outputs(eqn: core.JaxprEqn, flags: Sequence[bool]) -> list[bool]:
    """Whether each output of an equation derives from an input that is flagged."""
    name = eqn.primitive.name
    if name in compat.CALLS or name in compat.REMAT:
        return jaxpr_outputs(compat.call_jaxpr(eqn), flags)
    if name == "cond":
        branches = [jaxpr_outputs(b, flags[1:]) for b in eqn.params["branches"]]
        return [flags[0] or any(outs) for outs in zip(*branches, strict=True)]
    if name == "scan":
        body, num_consts, num_carry, _ = compat.scan_parts(eqn)
        carry = loop_flags(body, num_consts, num_carry, flags)
        before, after = flags[:num_consts], flags[num_consts + num_carry :]
        return jaxpr_outputs(body, [*before, *carry, *after])
    if name == "while":
        cond, num_cond, body, num_body = compat.while_parts(eqn)
        carry = loop_flags(body, num_body, len(eqn.outvars), flags[num_cond:])
        # How often the body runs may be a row's, and then so is all that it changes.
        test = jaxpr_outputs(cond, [*flags[:num_cond], *carry])
        return [flag or test[0] for flag in carry]
    return [any(flags)] * len(eqn.outvars)


def jaxpr_outputs(jaxpr: core.ClosedJaxpr, flags: Sequence[bool]) -> list[bool]:
    """`row_outputs` of a whole jaxpr."""
    rows = {
        var
        for var, const in zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True)
        if compat.is_tracer(const)
    }
    rows |= {var for var, f in zip(jaxpr.jaxpr.invars, flags, strict=True) if f}

    def flagged(atoms):
        return [isinstance(a, core.Var) and a in rows for a in atoms]

    for eqn in jaxpr.jaxpr.eqns:
        outs = row_outputs(eqn, flagged(eqn.invars))
        rows |= {var for var, f in zip(eqn.outvars, outs, strict=True) if f}
    return flagged(jaxpr.jaxpr.outvars)


def loop_flags(
    body: core.ClosedJaxpr, num_consts: int, num_carry: int, flags: Sequence[bool]
) -> list[bool]:
    """Flags of the carries of a loop, once they change no more.

    Args:
      body: takes constants, carries and slices; returns carries first.
      num_consts: number of constants.
      num_carry: number of carries.
      flags: of the inputs of the loop, in the body's order.
    """
    flags = list(flags)
    carries = slice(num_consts, num_consts + num_carry)
    while True:
        outs = jaxpr_outputs(body, flags)[:num_carry]
        joined = [a or b for a, b in zip(flags[carries], outs, strict=True)]
        if joined == flags[carries]:
            return joined
        flags[carries] = joined
