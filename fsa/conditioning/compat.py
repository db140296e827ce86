"""Everything that depends on the version of jax.

All tests of the package were run on the versions in `TRIED`, those of the bridge on
0.11.0 and 0.12.0 as well. 0.5 has no `jax.shard_map`.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any

import jax
from jax.extend import core, source_info_util

OLDEST = "0.6.2"
TRIED = (OLDEST, "0.10.2")

# Folders whose files are no model's.
_JAX = os.path.dirname(jax.__file__) + os.sep
_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep

# Names of a primitive in different versions.
CALLS = {"jit", "pjit", "closed_call", "core_call"}
REMAT = {"checkpoint", "remat", "remat2"}
CUSTOM = {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}
# Primitives that act alike on an array of any shape.
POINTWISE = {"copy", "copy_p", "stop_gradient", "name", "optimization_barrier"}
# Casts inside `jax.shard_map` to a type that varies over axes of the mesh.
VARY = {"pvary", "pcast", "pbroadcast"}


def closed(jaxpr: core.Jaxpr | core.ClosedJaxpr) -> core.ClosedJaxpr:
    """Closes a jaxpr; some primitives hold an open one, which has no constants."""
    if isinstance(jaxpr, core.ClosedJaxpr):
        return jaxpr
    return core.ClosedJaxpr(jaxpr, [])


def without_constants(jaxpr: core.ClosedJaxpr) -> core.ClosedJaxpr:
    """Makes the constants of a jaxpr its first inputs."""
    inner = jaxpr.jaxpr
    opened = inner.replace(
        constvars=[],
        invars=[*inner.constvars, *inner.invars],
        debug_info=_without_names(inner.debug_info),
    )
    return core.ClosedJaxpr(opened, [])


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
    names = ("jaxpr", "call_jaxpr", "fun_jaxpr")
    return closed(next(params[name] for name in names if name in params))


def function_name(eqn: core.JaxprEqn) -> str:
    """Returns the name of a function with a custom derivative."""
    info = getattr(call_jaxpr(eqn).jaxpr.debug_info, "func_src_info", None)
    info = info or eqn.primitive.name
    return info.split(" at ")[0]


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


def source(eqn: core.JaxprEqn, called_at: str = "") -> str:
    """Returns `file:line (function)` of the model's code that an equation is from.

    Args:
      eqn: the equation.
      called_at: the line that called the model. It comes first if the equation is from
        an installed library, since jax keeps a few lines of a traceback only.
    """
    frames = getattr(eqn.source_info.traceback, "frames", ())
    user = next((f for f in frames if not _is_library(f.file_name)), None)
    where = source_info_util.summarize(eqn.source_info)
    if user is not None:
        own = f"{user.file_name}:{user.line_num} ({user.function_name})"
    elif called_at:
        own = called_at
    else:
        return where
    return own if where.startswith((_HERE, own.split(" ")[0])) else f"{own}, in {where}"


def passes_through(eqn: core.JaxprEqn, package: str) -> bool:
    """Whether an equation is from a function that a package called."""
    frames = getattr(eqn.source_info.traceback, "frames", ())
    return any(f"{os.sep}{package}{os.sep}" in frame.file_name for frame in frames)


def caller() -> str:
    """Returns `file:line (function)` of the innermost code outside of libraries."""
    frame = sys._getframe(1)
    while frame is not None and _is_library(frame.f_code.co_filename):
        frame = frame.f_back
    if frame is None:
        return ""
    return f"{frame.f_code.co_filename}:{frame.f_lineno} ({frame.f_code.co_qualname})"


def _is_internal(file: str) -> bool:
    return file.startswith((_JAX, _HERE)) or file.startswith("<")


def _is_library(file: str) -> bool:
    return _is_internal(file) or "site-packages" in file


def varies_over(x: Any) -> frozenset:
    """The axes of a mesh over which an array inside `jax.shard_map` may vary."""
    kind = jax.typeof(x)
    if hasattr(kind, "manual_axis_type"):  # Older versions call it `vma`.
        return frozenset(kind.manual_axis_type.varying)
    return frozenset(getattr(kind, "vma", ()))


def is_sharded(x: Any) -> bool:
    """Whether an array's type names axes of a mesh, as it does on explicit ones."""
    spec = getattr(getattr(jax.typeof(x), "sharding", None), "spec", None)
    return any(axis is not None for axis in spec or ())


def vary(x: Any, axes: Sequence[str]) -> Any:
    """Casts an array inside `jax.shard_map` to one that may vary over axes as well."""
    missing = tuple(axis for axis in axes if axis not in varies_over(x))
    if not missing:
        return x
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(x, missing, to="varying")
    return jax.lax.pvary(x, missing)


def is_tracer(x: Any) -> bool:
    """Whether x is traced, an array whose value is not known yet."""
    return isinstance(x, jax.core.Tracer)
