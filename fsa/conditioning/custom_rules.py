"""Rules of one's own: for primitives, and for functions such as Pallas kernels.

The bridge sees a Pallas kernel as one primitive that it knows nothing about, and keeps
a function with a custom derivative as it is, so either would get a conditioned
parameter as one array. A rule says how to compute it part by part:

    fused = with_rule(fused, matmul_rule(fused))

A rule takes the arguments, of which at least one is `Conditioned`, and returns arrays,
or a `Conditioned` whose w depends on no other argument. It raises `NotSeparable` if the
parameter has to be built after all.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from . import compat, products
from .leaf import NotSeparable, is_conditioned
from .rules import RULES

# What the bridge itself evaluates; for functions with custom derivatives, `with_rule`.
CONTROL = {"cond", "scan", "while", "shard_map", *compat.CALLS, *compat.REMAT}
CONTROL |= compat.CUSTOM

CALL = core.Primitive("call_with_rule")
CALL.multiple_results = True


def register_rule(primitive: core.Primitive | str) -> Callable[[Callable], Callable]:
    """Registers a rule for a primitive, as a decorator.

    Args:
      primitive: the primitive or its name.

    Returns:
      The decorator of `rule(*arguments, **parameters)`, which gets the parameters of
      the primitive by name, and returns a list if the primitive has several results.

    Raises:
      ValueError: if the primitive has a rule already.
    """
    name = primitive if isinstance(primitive, str) else primitive.name

    if name in RULES or name in CONTROL:
        raise ValueError(f"`primitive`: {name} has a rule already")

    def register(rule):
        RULES[name] = lambda eqn, *values: rule(*(v.data for v in values), **eqn.params)
        return rule

    return register


def with_rule(fn: Callable, rule: Callable) -> Callable:
    """Gives a function a rule, which the bridge uses in place of the function.

    Args:
      fn: a function of pytrees of arrays, such as one that calls a Pallas kernel, or
        has a custom derivative. Without conditioned parameters it is called as before.
      rule: takes the same arguments, some leaves of which are `Conditioned`, and
        returns a result of the same structure. Under a `jax.vmap` or a derivative that
        the model itself takes, fn's program is evaluated instead.

    Returns:
      A function to be used in place of fn; it takes positional arguments.
    """

    @functools.wraps(fn)
    def called(*args):
        flat, structure = jax.tree.flatten(args)
        jaxpr, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
        outs = CALL.bind(
            *(*jaxpr.consts, *flat),
            jaxpr=compat.without_constants(jaxpr),
            num_consts=len(jaxpr.consts),
            rule=rule,
            structure=structure,
        )
        return jax.tree.unflatten(jax.tree.structure(shapes), outs)

    return called


def matmul_rule(fn: Callable[[jax.Array, jax.Array], jax.Array]) -> Callable:
    """Makes the rule of a function that computes `x @ w` in a way of its own.

    Args:
      fn: takes x `[..., inputs]` and w `[inputs, outputs]`. It is called with plain
        arrays; what modulations add is computed around it.
    """

    def rule(x, w):
        if is_conditioned(x) or w.ndim != 2:
            raise NotSeparable("only w of `x @ w`, with two axes, may be conditioned")
        names = ((x.ndim - 1,), (0,)), ((), ())
        return products.dot_general(x, w, names, multiply_base=fn)

    return rule


def apply_rule(eqn: core.JaxprEqn, arguments: list[Any]) -> list[Any]:
    """Computes an equation that `with_rule` made; arguments come without constants."""
    params = eqn.params
    result = params["rule"](*jax.tree.unflatten(params["structure"], arguments))
    return jax.tree.leaves(result, is_leaf=is_conditioned)


def _program(*args, jaxpr, **_):
    return core.jaxpr_as_fun(jaxpr)(*args)


def _derivative(primals, tangents, **params):
    moving = [n for n, t in enumerate(tangents) if not isinstance(t, ad.Zero)]

    def of_moving(*args):
        full = list(primals)
        for n, x in zip(moving, args, strict=True):
            full[n] = x
        return _program(*full, **params)

    pairs = [primals[n] for n in moving], [tangents[n] for n in moving]
    return jax.jvp(of_moving, *pairs)


def _batched(args, dims, **params):
    axes = [dim if isinstance(dim, int) else None for dim in dims]
    outs = jax.vmap(functools.partial(_program, **params), axes)(*args)
    return outs, [0] * len(outs)


CALL.def_impl(_program)
CALL.def_abstract_eval(lambda *_, jaxpr, **__: jaxpr.out_avals)
mlir.register_lowering(CALL, mlir.lower_fun(_program, multiple_results=True))
ad.primitive_jvps[CALL] = _derivative
batching.primitive_batchers[CALL] = _batched
