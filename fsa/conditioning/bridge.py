"""Runs a model that knows nothing of `Conditioned` on conditioned parameters.

The model is traced to a jaxpr, which is evaluated again with a rule for each primitive
that a conditioned parameter meets. If a primitive has no rule, or its result does not
separate into parts, the parameter is materialised, that is, built as one array. The
result is right, but under `jax.vmap` each user gets a copy of the weight: `report`
lists where this happens, `strict=True` refuses it.

The evaluator knows of every value whether it depends on the example (`dependence.py`):
values computed from the model's inputs do, values computed from plain parameters and
constants are shared by all examples. A parameter indexed with data of an example is an
activation, and building it copies no weight.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend import core

from . import compat
from .dependence import dependent_carries, dependent_outputs
from .leaf import NotSeparable, is_conditioned, scannable
from .rules import INDEXING, RULES, part_spec


class MaterializationError(ValueError):
    """Raised with `strict=True` if a conditioned parameter would have to be built."""


@dataclasses.dataclass(frozen=True)
class Use:
    """One use of a conditioned parameter by a primitive.

    Attributes:
      path: path of the parameter.
      shape: shape of the parameter when the primitive takes it.
      primitive: name of the primitive; "condition" if the parameter is no larger than
        its modulation and is built at once.
      source: file and line of the model.
      bytes_per_user: size of the array that is built, 0 if the use is part by part.
      reason: why it is built, "" if it is not.
    """

    path: str
    shape: tuple[int, ...]
    primitive: str
    source: str
    bytes_per_user: int
    reason: str


@dataclasses.dataclass(frozen=True)
class Report:
    """Every use of every conditioned parameter; prints as a table.

    Attributes:
      uses: the uses, in the order of the program.
    """

    uses: tuple[Use, ...]

    @property
    def materialized(self) -> tuple[Use, ...]:
        """The uses that build an array as large as the weight for each user."""
        return tuple(use for use in self.uses if use.bytes_per_user)

    def __str__(self) -> str:
        head = ("parameter", "shape", "primitive", "bytes per user", "how", "where")
        rows = [
            (
                use.path,
                "x".join(map(str, use.shape)),
                use.primitive,
                f"{use.bytes_per_user:,}",
                f"materialised: {use.reason}" if use.bytes_per_user else "by parts",
                use.source,
            )
            for use in self.uses
        ]
        return table([head, *rows])


def table(rows: Sequence[Sequence[str]]) -> str:
    """Formats rows, of which the first is the head, as left-aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def bridge(apply: Callable, *, strict: bool = False) -> Callable:
    """Makes a function of parameters accept conditioned ones.

    Args:
      apply: a pure function whose first argument is a pytree of parameters. Arguments
        that hold no arrays (None, flags, strings, functions) are passed on unchanged.
      strict: refuse to materialise.

    Returns:
      A function with the same arguments, any of which may have `Conditioned` leaves. It
      works under jit, grad and vmap as `apply` does. If a function with a custom
      derivative takes a conditioned parameter, the parameter is materialised, so that
      the custom derivative is kept.

    Raises:
      MaterializationError: when the returned function is called, with `strict`; the
        message names the parameter, the primitive and the line of the model.
    """

    def bridged(*args, **kwargs):
        return _run(apply, args, kwargs, _Evaluator(strict))

    return bridged


def report(apply: Callable, *args: Any, **kwargs: Any) -> Report:
    """Lists how `bridge(apply)` uses conditioned parameters, without running it.

    Args:
      apply: as for `bridge`.
      *args: arguments of `apply` for one example: parameters with conditioned leaves
        first. Any array may be a `jax.ShapeDtypeStruct`.
      **kwargs: likewise.
    """
    evaluator = _Evaluator(strict=False)
    leaves, treedef = jax.tree.flatten((args, kwargs))
    arrays = [i for i, x in enumerate(leaves) if _is_array(x)]

    def run(values):
        filled = list(leaves)
        for i, value in zip(arrays, values, strict=True):
            filled[i] = value
        args, kwargs = jax.tree.unflatten(treedef, filled)
        return _run(apply, args, kwargs, evaluator)

    jax.eval_shape(run, [leaves[i] for i in arrays])
    return Report(tuple(evaluator.uses))


@dataclasses.dataclass(frozen=True)
class _Value:
    """An array or a conditioned parameter in the program.

    Attributes:
      data: the array or the `Conditioned`.
      per_example: whether it, or the w of a conditioned parameter, depends on the
        example, by its data or by a modulation.
      path: path of the parameter that it comes from, if it is conditioned.
    """

    data: Any
    per_example: bool
    path: str = ""

    @property
    def is_lazy(self) -> bool:
        return is_conditioned(self.data)


def _is_array(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


def _run(apply, args, kwargs, evaluator):
    leaves, treedef = jax.tree_util.tree_flatten_with_path(
        (args, kwargs), is_leaf=is_conditioned
    )
    # An argument with conditioned leaves holds parameters, others an example's data.
    parameters = {path[:2] for path, x in leaves if is_conditioned(x)}
    values, positions = [], []
    for i, (path, x) in enumerate(leaves):
        if is_conditioned(x) or _is_array(x):
            name = jax.tree_util.keystr(path[2:], simple=True, separator="/")
            per_example = path[:2] not in parameters
            values.append(evaluator.enter(_Value(x, per_example, name)))
            positions.append(i)

    def flat(arrays):
        filled = [x for _, x in leaves]
        for i, array in zip(positions, arrays, strict=True):
            filled[i] = array
        args, kwargs = jax.tree.unflatten(treedef, filled)
        return apply(*args, **kwargs)

    shown = [v.data.base if v.is_lazy else v.data for v in values]
    jaxpr, out_shape = jax.make_jaxpr(flat, return_shape=True)(shown)
    outs = evaluator.plain(evaluator.run(jaxpr, values))
    return jax.tree.unflatten(jax.tree.structure(out_shape), outs)


# If one input depends on the example, the result of these has the same size for each
# example in the unconditioned program as well.
_ELEMENTWISE = {
    *("add", "sub", "mul", "div", "max", "min", "pow", "select_n", "add_any"),
    "concatenate",
}


class _Evaluator:
    """Evaluates jaxprs on `_Value`s and records how conditioned parameters are used."""

    def __init__(self, strict: bool):
        self._strict = strict
        self._seen: dict[Use, None] = {}

    @property
    def uses(self) -> list[Use]:
        # The body of a loop may be traced more than once.
        return list(self._seen)

    def enter(self, value: _Value) -> _Value:
        """Builds a parameter if that costs no memory: a small or an indexed one."""
        if not value.is_lazy or (value.data.is_compact and not value.per_example):
            return value
        if not value.per_example:
            self._note(value, "condition", "", "")
        return _Value(value.data.materialize(), per_example=True)

    def run(self, jaxpr: core.ClosedJaxpr, inputs: Sequence[_Value]) -> list[_Value]:
        """Evaluates a jaxpr; outputs may be conditioned."""
        env = dict(zip(jaxpr.jaxpr.invars, inputs, strict=True))
        for var, const in zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True):
            env[var] = _Value(const, per_example=compat.is_tracer(const))

        def read(atom):
            if isinstance(atom, core.Literal):
                return _Value(atom.val, per_example=False)
            return env[atom]

        for eqn in jaxpr.jaxpr.eqns:
            outs = self._equation(jaxpr.jaxpr, eqn, [read(v) for v in eqn.invars])
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(atom) for atom in jaxpr.jaxpr.outvars]

    def plain(self, values: Sequence[_Value], eqn=None, reason="an output") -> list:
        """Returns arrays; materialises conditioned values and records or refuses it."""
        return [self._plain(value, eqn, reason) for value in values]

    def _plain(self, value: _Value, eqn, reason: str) -> Any:
        if not value.is_lazy:
            return value.data
        if not value.per_example:
            primitive = eqn.primitive.name if eqn else "return"
            self._note(value, primitive, compat.source(eqn) if eqn else "", reason)
        return value.data.materialize()

    def _note(self, value: _Value, primitive: str, source: str, reason: str):
        leaf = value.data
        size = leaf.size * leaf.dtype.itemsize if reason else 0
        use = Use(value.path, leaf.shape, primitive, source, size, reason)
        if reason and self._strict:
            raise MaterializationError(
                f"{use.path} ({'x'.join(map(str, use.shape))}) would be built for each "
                f"user by {primitive} at {source or 'the output'}: {reason}; condition "
                "another axis, rewrite that line, or allow it with strict=False"
            )
        self._seen[use] = None

    def _equation(self, jaxpr, eqn, inputs: list[_Value]) -> list[_Value]:
        name = eqn.primitive.name
        per_example = any(value.per_example for value in inputs)
        if not any(value.is_lazy for value in inputs):
            outs = compat.evaluate(jaxpr, eqn, [value.data for value in inputs])
            flags = dependent_outputs(eqn, [value.per_example for value in inputs])
            return [_Value(x, f) for x, f in zip(outs, flags, strict=True)]
        if name in self._CONTROL:
            return self._CONTROL[name](self, eqn, inputs)
        reason = "no rule for this primitive"
        if name in RULES:
            try:
                outs = RULES[name](eqn, *inputs)
            except NotSeparable as error:
                reason = str(error)
            else:
                for value in inputs:
                    if value.is_lazy:
                        self._note(value, name, compat.source(eqn), "")
                path = next(value.path for value in inputs if value.is_lazy)
                # Only an index makes a shared w depend on the example.
                per_example = any(
                    value.per_example
                    for value in inputs
                    if value.is_lazy or name in INDEXING
                )
                return [
                    self.enter(_Value(x, per_example or not is_conditioned(x), path))
                    for x in (outs if isinstance(outs, list) else [outs])
                ]
        if name in compat.CUSTOM:
            reason = "a custom derivative takes the parameter as one array"
        if name in _ELEMENTWISE and per_example:
            inputs = [dataclasses.replace(value, per_example=True) for value in inputs]
        return _per_example(
            compat.evaluate(jaxpr, eqn, self.plain(inputs, eqn, reason))
        )

    def _closure(self, jaxpr: core.ClosedJaxpr, like: Sequence[_Value]) -> Callable:
        """Makes the jaxpr a function of data, for what takes Python functions."""

        def fn(*data):
            pairs = zip(like, data, strict=True)
            values = [dataclasses.replace(value, data=x) for value, x in pairs]
            return self.plain(self.run(jaxpr, [self.enter(v) for v in values]))

        return fn

    def _inline(self, eqn, inputs):
        return self.run(compat.call_jaxpr(eqn), inputs)

    def _remat(self, eqn, inputs):
        fn = jax.checkpoint(
            self._closure(compat.call_jaxpr(eqn), inputs),
            prevent_cse=eqn.params["prevent_cse"],
            policy=eqn.params["policy"],
        )
        return _per_example(fn(*(value.data for value in inputs)))

    def _cond(self, eqn, inputs):
        index, *operands = inputs
        branches = [self._closure(b, operands) for b in eqn.params["branches"]]
        data = [value.data for value in operands]
        return _per_example(lax.switch(index.data.astype(int), branches, *data))

    def _scan(self, eqn, inputs):
        body, num_consts, num_carry, options = compat.scan_parts(eqn)
        loop = _Loop(self, eqn, body, num_consts, num_carry, inputs)
        xs = [_scannable(value) for value in inputs[num_consts + num_carry :]]
        step = self._closure(body, [*loop.consts, *loop.carry, *xs])

        def advance(moving, slices):
            outs = step(*loop.inputs(moving), *slices)
            return loop.moving(outs[:num_carry]), outs[num_carry:]

        data = [value.data for value in xs]
        last, ys = lax.scan(advance, loop.start, data, **options)
        return loop.outputs(last) + _per_example(ys)

    def _while(self, eqn, inputs):
        cond, num_cond, body, num_body = compat.while_parts(eqn)
        cond_consts, inputs = inputs[:num_cond], inputs[num_cond:]
        loop = _Loop(self, eqn, body, num_body, len(inputs) - num_body, inputs)
        test = self._closure(cond, [*cond_consts, *loop.carry])
        step = self._closure(body, [*loop.consts, *loop.carry])

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
        fn = jax.shard_map(
            lambda *data: tuple(self._closure(body, inputs)(*data)),
            in_specs=specs,
            out_specs=tuple(out_specs),
            **options,
        )
        return _per_example(fn(*(value.data for value in inputs)))

    _CONTROL = {
        **dict.fromkeys(compat.CALLS, _inline),
        **dict.fromkeys(compat.REMAT, _remat),
        "cond": _cond,
        "scan": _scan,
        "while": _while,
        "shard_map": _shard_map,
    }


class _Loop:
    """The carry of a loop, split into what changes and parameters that do not.

    A parameter that each iteration passes on unchanged stays conditioned; one that
    changes is materialised.
    """

    def __init__(self, evaluator, eqn, body, num_consts, num_carry, inputs):
        self.consts = inputs[:num_consts]
        carry = inputs[num_consts : num_consts + num_carry]
        variables = body.jaxpr.invars[num_consts : num_consts + num_carry]
        outs = body.jaxpr.outvars[:num_carry]
        self._kept = [
            value.is_lazy and out is variable
            for value, out, variable in zip(carry, outs, variables, strict=True)
        ]
        flags = [value.per_example or value.is_lazy for value in inputs]
        flags = dependent_carries(body, num_consts, num_carry, flags)
        reason = "it changes in a loop"
        self.carry = [
            value if kept else _Value(*evaluator.plain([value], eqn, reason), flag)
            for value, kept, flag in zip(carry, self._kept, flags, strict=True)
        ]
        self.start = self.moving([value.data for value in self.carry])

    def moving(self, carry: Sequence[Any]) -> list:
        """Selects the elements of a carry that change."""
        return [x for x, kept in zip(carry, self._kept, strict=True) if not kept]

    def inputs(self, moving: Sequence[Any]) -> list:
        """Returns the constants and the complete carry."""
        rest = iter(moving)
        pairs = zip(self.carry, self._kept, strict=True)
        carry = [value.data if kept else next(rest) for value, kept in pairs]
        return [value.data for value in self.consts] + carry

    def outputs(self, moving: Sequence[Any]) -> list[_Value]:
        """Returns the complete carry after the loop."""
        rest = iter(moving)
        return [
            value if kept else _Value(next(rest), per_example=True)
            for value, kept in zip(self.carry, self._kept, strict=True)
        ]


def _scannable(value: _Value) -> _Value:
    data = scannable(value.data) if value.is_lazy else value.data
    return dataclasses.replace(value, data=data)


def _per_example(arrays: Sequence[Any]) -> list[_Value]:
    return [_Value(x, per_example=True) for x in arrays]
