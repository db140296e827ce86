"""Everything that depends on the version of jax.

All tests of the package were run on the versions in `TRIED`, those of the bridge on
0.11.0 and 0.12.0 as well. 0.5 has no `jax.shard_map`.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax.extend import core, source_info_util

OLDEST = "0.6.2"
TRIED = (OLDEST, "0.10.2")

# Names of a primitive in different versions.
CALLS = {"jit", "pjit", "closed_call", "core_call"}
REMAT = {"checkpoint", "remat", "remat2"}
CUSTOM = {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}
# Primitives that act alike on an array of any shape.
POINTWISE = {"copy", "copy_p", "stop_gradient", "pvary", "pcast", "pbroadcast"}


def closed(jaxpr: core.Jaxpr | core.ClosedJaxpr) -> core.ClosedJaxpr:
    """Closes a jaxpr; some primitives hold an open one, which has no constants."""
    if isinstance(jaxpr, core.ClosedJaxpr):
        return jaxpr
    return core.ClosedJaxpr(jaxpr, [])


def evaluate(jaxpr: core.Jaxpr, eqn: core.JaxprEqn, inputs: Sequence[Any]) -> list:
    """Runs one equation of a jaxpr unchanged."""
    names = [v for v in eqn.invars if isinstance(v, core.Var)]
    values = [
        x for v, x in zip(eqn.invars, inputs, strict=True) if isinstance(v, core.Var)
    ]
    unique = dict(zip(names, values, strict=True))
    alone = jaxpr.replace(
        constvars=[],
        invars=list(unique),
        outvars=eqn.outvars,
        eqns=[eqn],
        debug_info=_without_names(jaxpr.debug_info),
    )
    return core.jaxpr_as_fun(core.ClosedJaxpr(alone, []))(*unique.values())


def _without_names(debug_info: Any) -> Any:
    """Drops the names of inputs, whose number would have to fit the new inputs."""
    if not hasattr(debug_info, "with_unknown_names"):  # up to 0.6, which does not check
        return debug_info
    return debug_info.with_unknown_names()


def call_jaxpr(eqn: core.JaxprEqn) -> core.ClosedJaxpr:
    """Returns the jaxpr of a call or of a remat."""
    params = eqn.params
    return closed(params["jaxpr"] if "jaxpr" in params else params["call_jaxpr"])


def scan_parts(eqn: core.JaxprEqn) -> tuple[core.ClosedJaxpr, int, int, dict]:
    """Returns body, number of constants and of carries, and options of `lax.scan`."""
    params = eqn.params
    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    if "ft_in" in params:  # from 0.11
        consts, carry, _ = params["ft_in"].unpack()
        return closed(params["jaxpr"]), len(consts), len(carry), options
    return params["jaxpr"], params["num_consts"], params["num_carry"], options


def while_parts(eqn: core.JaxprEqn):
    """Returns (condition, its number of constants, body, its number of constants)."""
    p = eqn.params
    return p["cond_jaxpr"], p["cond_nconsts"], p["body_jaxpr"], p["body_nconsts"]


def shard_map_parts(eqn: core.JaxprEqn) -> tuple[core.ClosedJaxpr, Any, Any, dict]:
    """Returns body, input specs, output specs and options of `jax.shard_map`."""
    p = eqn.params
    manual = p["newly_manual_axes"] if "newly_manual_axes" in p else p["manual_axes"]
    options = {"mesh": p["mesh"], "check_vma": p["check_vma"], "axis_names": manual}
    return closed(p["jaxpr"]), p["in_specs"], p["out_specs"], options


def source(eqn: core.JaxprEqn) -> str:
    """Returns `file:line (function)` of the model's code that an equation is from."""
    return source_info_util.summarize(eqn.source_info)


def is_tracer(x: Any) -> bool:
    """Whether x is traced, an array whose value is not known yet."""
    return isinstance(x, jax.core.Tracer)
