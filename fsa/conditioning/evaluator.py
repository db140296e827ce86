"""`Evaluator`: evaluates a jaxpr with a rule for each primitive that meets a parameter.

It knows of every value whether it depends on the example (`dependence.py`): values
computed from the model's inputs do, values computed from plain parameters and constants
are shared by all examples. A parameter indexed with data of an example is an
activation, and building it copies no weight.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from . import compat, products
from .custom_rules import CALL, apply_rule
from .dependence import dependent_outputs
from .leaf import NotSeparable, build_at_tokens, is_conditioned
from .loops import Hoisted, Loop
from .rules import INDEXING, RULES, part_spec
from .uses import Use
from .values import CONVERSIONS, Value, of_examples, read, scannable_value


class MaterializationError(ValueError):
    """Raised with `strict=True` if a conditioned parameter would have to be built."""


_OUTSIDE = "return what is computed with it instead"


def _custom(eqn) -> tuple[str, str]:
    """Returns why a function with a custom derivative builds w, and what helps."""
    name = compat.function_name(eqn)
    kept = f"{name} has a derivative of its own, which takes the parameter as one array"
    if compat.passes_through(eqn, "diffrax"):
        # Its other adjoints are such functions; they get the weights of the equation.
        return kept, "choose `adjoint=diffrax.DirectAdjoint()`, which has none"
    return kept, (
        f"give {name} a rule by `with_rule`, pass it what is computed with the "
        "parameter, or drop its derivative with "
        f"`bridge(..., inline=({name!r},))`"
    )


def _numbers_per_token(leaf, is_indexed: bool) -> int:
    """Counts the numbers of a segment that each of its tokens reads.

    That is a scale's width, but the rank alone of a low-rank term with shared factors.
    """
    if leaf.segments is None:
        return 0

    def numbers(part, ndim):
        if part.ndim == ndim:
            return 0
        rows = leaf.shape[0] if is_indexed and part.shape[0] > 1 else 1
        return part.size // (rows * part.shape[-1])

    factors = [factor for term in leaf.terms for factor in term]
    return sum(numbers(scale, leaf.ndim) for scale in leaf.scales) + sum(
        numbers(factor, leaf.ndim + 1) for factor in factors
    )


def _built(leaf) -> jax.Array:
    return leaf.materialize() if leaf.segments is None else build_at_tokens(leaf)


def _at_tokens(value: Value, eqn) -> Value:
    """Builds a parameter of several segments that is spread over tokens, as a bias."""
    if not value.is_lazy or value.data.segments is None or value.data.shape[0] != 1:
        return value
    shape = eqn.outvars[0].aval.shape
    if shape[0] != value.data.segments.shape[0]:
        return value
    return Value(build_at_tokens(value.data), per_example=True)


# If one input depends on the example, the result of these has the same size for each
# example in the unconditioned program as well.
_ELEMENTWISE = {
    *("add", "sub", "mul", "div", "max", "min", "pow", "select_n", "add_any"),
    "concatenate",
}


class Evaluator:
    """Evaluates jaxprs on `Value`s and records how conditioned parameters are used."""

    def __init__(self, strict: bool, inline: Sequence[str] = (), called_at: str = ""):
        """See `bridge`; `called_at` is the line that called it."""
        self._strict = strict
        self._called_at = called_at
        self._inlined = (inline,) if isinstance(inline, str) else tuple(inline)
        self._seen: dict[Use, None] = {}

    @property
    def uses(self) -> list[Use]:
        """The uses so far, in the order of the program."""
        # The body of a loop may be traced more than once.
        return list(self._seen)

    def enter(self, value: Value) -> Value:
        """Builds a parameter if that costs no memory: a small or an indexed one."""
        if not value.is_lazy or (value.data.is_compact and not value.per_example):
            return value
        if value.data.is_integer:  # It is built once the model casts it to floats.
            return value
        if not value.per_example:
            self._note(value, "condition", "", "")
        return Value(_built(value.data), per_example=True)

    def run(
        self,
        jaxpr: core.ClosedJaxpr,
        inputs: Sequence[Value],
        known: dict[core.Var, Value] | None = None,
        joined: dict[int, tuple] | None = None,
    ) -> list[Value]:
        """Evaluates a jaxpr; outputs may be conditioned.

        Args:
          jaxpr: the jaxpr.
          inputs: its inputs.
          known: values that were computed before; their equations are left out.
          joined: products that are computed at once, see `Hoisted`.
        """
        env = self.constants(jaxpr)
        env |= dict(zip(jaxpr.jaxpr.invars, inputs, strict=True)) | (known or {})
        self.evaluate(jaxpr, jaxpr.jaxpr.eqns, env, joined or {})
        return [read(env, atom) for atom in jaxpr.jaxpr.outvars]

    @staticmethod
    def constants(jaxpr: core.ClosedJaxpr) -> dict[core.Var, Value]:
        """Returns the values of a jaxpr's constants."""
        env = {}
        for var, const in zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True):
            if isinstance(const, np.ndarray):  # It may be wider than jax is set to.
                const = const.astype(var.aval.dtype, copy=False)
            env[var] = Value(const, per_example=compat.is_tracer(const))
        return env

    def evaluate(self, jaxpr, eqns: Sequence[core.JaxprEqn], env: dict, joined=()):
        """Adds to `env` what equations compute that is not there yet."""
        for eqn in eqns:
            if eqn.outvars and all(var in env for var in eqn.outvars):
                continue
            inputs = [read(env, v) for v in eqn.invars]
            if id(eqn) in joined and (outs := self._joint(inputs, *joined[id(eqn)])):
                env.update(outs)
                continue
            outs = self._equation(jaxpr.jaxpr, eqn, inputs)
            env.update(zip(eqn.outvars, outs, strict=True))

    def _joint(self, inputs: list[Value], weight, parts) -> dict[core.Var, Value]:
        """Computes products of one array at once; their weights are joined.

        Args:
          inputs: the array and the first of the weights, in the order of the product.
          weight: the joined weight.
          parts: pairs of an equation and its own weight.

        Returns:
          The values of all products; none if each has to be computed alone.
        """
        if all(value.is_lazy for value in inputs):
            return {}
        operands = [weight if value.is_lazy else value.data for value in inputs]
        eqns = [eqn for eqn, _ in parts]
        try:
            out = products.dot_general(*operands, **eqns[0].params)
        except NotSeparable:
            return {}
        for eqn, value in parts:
            self._note_by_parts(eqn, [value])
        numbers = eqns[0].params["dimension_numbers"]
        axis = products.output_axis(numbers, is_conditioned(operands[0]))
        sizes = [eqn.outvars[0].aval.shape[axis] for eqn in eqns]
        outs = jnp.split(out, np.cumsum(sizes)[:-1], axis)
        variables = [eqn.outvars[0] for eqn in eqns]
        return dict(zip(variables, of_examples(outs), strict=True))

    def plain(self, values, eqn=None, reason="an output", remedy="") -> list:
        """Returns arrays; materialises conditioned values and records or refuses it."""
        return [self._plain(value, eqn, reason, remedy) for value in values]

    def _plain(self, value: Value, eqn, reason: str, remedy: str) -> Any:
        if not value.is_lazy:
            return value.data
        if not value.per_example or value.data.is_integer:
            primitive = eqn.primitive.name if eqn else "return"
            source = compat.source(eqn, self._called_at) if eqn else ""
            self._note(value, primitive, source, reason, remedy)
        return _built(value.data)

    def _note(
        self, value: Value, primitive: str, source: str, reason: str, remedy: str = ""
    ):
        leaf = value.data
        size = leaf.size * leaf.dtype.itemsize if reason else 0
        tokens = _numbers_per_token(leaf, primitive in INDEXING)
        use = Use(value.path, leaf.shape, primitive, source, size, reason, tokens)
        named = f"{use.path} ({'x'.join(map(str, use.shape))} {leaf.dtype.name})"
        at = f"{primitive} at {source or 'the output'}"
        if reason and leaf.is_integer:
            raise MaterializationError(
                f"{named} is quantised and has no modulated value for {at}: "
                f"{reason}; cast it to floats there first, or condition its scale"
            )
        if reason and leaf.segments is not None:
            raise MaterializationError(
                f"{named} differs by segment and cannot be built for {at}: {reason}"
            )
        if reason and self._strict:
            remedy = remedy or "condition another axis, or rewrite that line"
            raise MaterializationError(
                f"{named} would be built for each user by {at}: {reason}; {remedy}, or "
                "allow it with strict=False"
            )
        self._seen[use] = None

    def _note_by_parts(self, eqn, values: Sequence[Value]):
        source = compat.source(eqn, self._called_at)
        for value in values:
            if value.is_lazy:
                self._note(value, eqn.primitive.name, source, "")

    def _equation(self, jaxpr, eqn, inputs: list[Value]) -> list[Value]:
        name = eqn.primitive.name
        if not any(value.is_lazy for value in inputs):
            return self._unconditioned(jaxpr, eqn, inputs)
        if name in self._CONTROL:
            return self._CONTROL[name](self, eqn, inputs)
        if name in compat.CUSTOM and compat.function_name(eqn) in self._inlined:
            return self._inline(eqn, inputs)
        per_example = any(value.per_example for value in inputs)
        if name in _ELEMENTWISE and per_example:
            built = [_at_tokens(value, eqn) for value in inputs]
            if not any(value.is_lazy for value in built):
                self._note_by_parts(eqn, inputs)
                return self._unconditioned(jaxpr, eqn, built)
        reason = f"no rule for {name}"
        remedy = "give it one by `register_rule` or `with_rule`, rewrite that line"
        if name in RULES:
            try:
                return self._by_parts(eqn, inputs)
            except NotSeparable as error:
                reason, remedy = str(error), error.remedy
        if name in compat.CUSTOM:
            reason, remedy = _custom(eqn)
        if name in _ELEMENTWISE and per_example:
            inputs = [dataclasses.replace(value, per_example=True) for value in inputs]
        return of_examples(
            compat.evaluate(jaxpr, eqn, self.plain(inputs, eqn, reason, remedy))
        )

    def _unconditioned(self, jaxpr, eqn, inputs: list[Value]) -> list[Value]:
        outs = compat.evaluate(jaxpr, eqn, [value.data for value in inputs])
        if eqn.primitive.name in CONVERSIONS:
            return [inputs[0].converted(eqn, outs[0])]
        flags = dependent_outputs(eqn, [value.per_example for value in inputs])
        return [Value(x, f) for x, f in zip(outs, flags, strict=True)]

    def _by_parts(self, eqn, inputs: list[Value]) -> list[Value]:
        name = eqn.primitive.name
        outs = RULES[name](eqn, *inputs)
        self._note_by_parts(eqn, inputs)
        path = next(value.path for value in inputs if value.is_lazy)
        # Only an index makes a shared w depend on the example.
        per_example = any(
            value.per_example for value in inputs if value.is_lazy or name in INDEXING
        )
        return [
            self.enter(Value(x, per_example or not is_conditioned(x), path))
            for x in (outs if isinstance(outs, list) else [outs])
        ]

    def _closure(
        self, jaxpr: core.ClosedJaxpr, like: Sequence[Value], eqn, reason: str
    ) -> Callable:
        """Makes the jaxpr a function of data, for what takes Python functions.

        Args:
          jaxpr: of a part of `eqn`.
          like: values that the data stand for.
          eqn: the equation.
          reason: why an output that is conditioned is built.
        """

        def fn(*data):
            outs = self.run(jaxpr, self._alike(like, data))
            return self.plain(outs, eqn, reason, _OUTSIDE)

        return fn

    def _alike(self, like: Sequence[Value], data: Sequence[Any]) -> list[Value]:
        pairs = zip(like, data, strict=True)
        return [self.enter(value.replace(x)) for value, x in pairs]

    def _inline(self, eqn, inputs):
        return self.run(compat.call_jaxpr(eqn), inputs)

    def _with_rule(self, eqn, inputs):
        arguments = inputs[eqn.params["num_consts"] :]
        try:
            outs = apply_rule(eqn, [value.data for value in arguments])
        except NotSeparable:
            return self._inline(eqn, inputs)
        lazy = [value for value in arguments if value.is_lazy]
        self._note_by_parts(eqn, lazy)
        per_example = any(value.per_example for value in lazy)
        values = [
            Value(x, per_example or not is_conditioned(x), lazy[0].path) for x in outs
        ]
        return [self.enter(value) for value in values]

    def _remat(self, eqn, inputs):
        values = []

        def fn(*data):
            values[:] = self.run(compat.call_jaxpr(eqn), self._alike(inputs, data))
            return [value.data for value in values]

        fn = jax.checkpoint(
            fn, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"]
        )
        outs = fn(*(value.data for value in inputs))
        return [value.replace(x) for value, x in zip(values, outs, strict=True)]

    def _cond(self, eqn, inputs):
        index, *operands = inputs
        branches = [
            self._closure(branch, operands, eqn, "a branch returns it")
            for branch in eqn.params["branches"]
        ]
        data = [value.data for value in operands]
        return of_examples(lax.switch(index.data.astype(int), branches, *data))

    def _scan(self, eqn, inputs):
        body, num_consts, num_carry, options = compat.scan_parts(eqn)
        loop = Loop(self, eqn, body, num_consts, num_carry, inputs)
        xs = [scannable_value(value) for value in inputs[num_consts + num_carry :]]
        like = [*loop.consts, *loop.carry, *xs]
        hoisted = Hoisted(self, body, loop.consts, num_carry, xs)

        def advance(moving, slices):
            slices, early = slices
            values = self._alike(like, [*loop.inputs(moving), *slices])
            known = hoisted.known(early)
            outs = self.run(hoisted.body, values, known, hoisted.joined)
            outs = self.plain(outs, eqn, "each step returns it", _OUTSIDE)
            return loop.moving(outs[:num_carry]), outs[num_carry:]

        data = [value.data for value in xs], hoisted.early
        last, ys = lax.scan(advance, loop.start, data, **options)
        return loop.outputs(last) + of_examples(ys)

    def _while(self, eqn, inputs):
        cond, num_cond, body, num_body = compat.while_parts(eqn)
        cond_consts, inputs = inputs[:num_cond], inputs[num_cond:]
        loop = Loop(self, eqn, body, num_body, len(inputs) - num_body, inputs)
        step_inputs, reason = [*loop.consts, *loop.carry], "each step returns it"
        test = self._closure(cond, [*cond_consts, *loop.carry], eqn, reason)
        step = self._closure(body, step_inputs, eqn, reason)

        def condition(moving):
            carry = loop.inputs(moving)[num_body:]
            return test(*(value.data for value in cond_consts), *carry)[0]

        def advance(moving):
            return loop.moving(step(*loop.inputs(moving)))

        return loop.outputs(lax.while_loop(condition, advance, loop.start))

    def _shard_map(self, eqn, inputs):
        body, in_specs, out_specs, options = compat.shard_map_parts(eqn)

        def spec_of(value, spec):
            if not value.is_lazy:
                return spec
            shape = value.data.shape
            return jax.tree.map(lambda x: part_spec(spec, x.shape, shape), value.data)

        specs = tuple(map(spec_of, inputs, in_specs))
        step = self._closure(body, inputs, eqn, "`shard_map` returns it")
        fn = jax.shard_map(
            lambda *data: tuple(step(*data)),
            in_specs=specs,
            out_specs=tuple(out_specs),
            **options,
        )
        return of_examples(fn(*(value.data for value in inputs)))

    _CONTROL = {
        **dict.fromkeys(compat.CALLS, _inline),
        **dict.fromkeys(compat.REMAT, _remat),
        "cond": _cond,
        "scan": _scan,
        "while": _while,
        "shard_map": _shard_map,
        CALL.name: _with_rule,
    }
