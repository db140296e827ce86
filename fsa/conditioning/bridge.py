"""Runs a model that knows nothing of `Conditioned` on conditioned parameters.

The model is traced to a jaxpr, which is evaluated again with a rule for each primitive
that a conditioned parameter meets. Where there is none, or where the parts do not
separate, the parameter is materialised: right, but a copy of the weight per user under
`jax.vmap`. `report` tells where, `strict=True` refuses it.

Every value is known to be a *row's* or shared: what derives from the model's inputs is
a row's, what derives from plain parameters and constants is shared. A parameter that
was indexed by a row's data is an activation, and building it costs no copy of a weight.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend import core

from . import compat
from .leaf import NotSeparable, is_conditioned, scannable
from .rows import loop_flags, row_outputs
from .rules import INDEXING, RULES, part_spec


class MaterializationError(ValueError):
    """A conditioned parameter would have to be built, which `strict=True` refuses."""


@dataclasses.dataclass(frozen=True)
class Use:
    """What a primitive did with a conditioned parameter.

    Attributes:
      path: of the parameter.
      shape: of the parameter there.
      primitive: its name; "condition" where the parameter is no larger than its
        modulation, and is built at once.
      source: file and line of the model.
      bytes_per_user: of the array that is built, 0 if it is used by parts.
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
      uses: in the order of the program.
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
    """Left-aligned columns under a ruled head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def bridge(apply: Callable, *, strict: bool = False) -> Callable:
    """Makes a function of parameters accept conditioned ones.

    Args:
      apply: a pure function whose first argument is a pytree of parameters. Arguments
        that hold no arrays (None, flags, strings, functions) are left as they are.
      strict: refuse to materialise.

    Returns:
      A function with the same arguments, in any of which leaves may be `Conditioned`,
      that transforms under jit, grad and vmap as `apply` does. A custom derivative of a
      function that is given a conditioned parameter is kept by materialising it.

    Raises:
      MaterializationError: when called, with `strict`, naming the parameter, the
        primitive and the line of the model.
    """

    def bridged(*args, **kwargs):
        return _run(apply, args, kwargs, _Evaluator(strict))

    return bridged


def report(apply: Callable, *args: Any, **kwargs: Any) -> Report:
    """Tells, without running it, how `bridge(apply)` uses conditioned parameters.

    Args:
      apply: as for `bridge`.
      *args: as `apply` takes, for one row: parameters with conditioned leaves first.
        `jax.ShapeDtypeStruct` will do for any array.
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
      data: what it is.
      is_row: whether it, or the w of a conditioned parameter, derives from a row's
        data or from a modulation.
      path: of the parameter it comes from, if it is conditioned.
    """

    data: Any
    is_row: bool
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
    # An argument with conditioned leaves holds parameters, the others a row's data.
    parameters = {path[:2] for path, x in leaves if is_conditioned(x)}
    values, positions = [], []
    for i, (path, x) in enumerate(leaves):
        if is_conditioned(x) or _is_array(x):
            name = jax.tree_util.keystr(path[2:], simple=True, separator="/")
            is_row = path[:2] not in parameters
            values.append(evaluator.enter(_Value(x, is_row, name)))
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


# With a row's data, these give a row's array in the unconditioned program as well.
_ROWWISE = {
    *("add", "sub", "mul", "div", "max", "min", "pow", "select_n", "add_any"),
    "concatenate",
}


class _Evaluator:
    """Evaluates jaxprs on `_Value`s and notes how conditioned parameters are used."""

    def __init__(self, strict: bool):
        self._strict = strict
        self._seen: dict[Use, None] = {}

    @property
    def uses(self) -> list[Use]:
        # The body of a loop may be traced more than once.
        return list(self._seen)

    def enter(self, value: _Value) -> _Value:
        """Builds what costs no memory: a small parameter, or rows of a table."""
        if not value.is_lazy or (value.data.is_compact and not value.is_row):
            return value
        if not value.is_row:
            self._note(value, "condition", "", "")
        return _Value(value.data.materialize(), is_row=True)

    def run(self, jaxpr: core.ClosedJaxpr, inputs: Sequence[_Value]) -> list[_Value]:
        """Evaluates a jaxpr; outputs may be conditioned."""
        env = dict(zip(jaxpr.jaxpr.invars, inputs, strict=True))
        for var, const in zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True):
            env[var] = _Value(const, is_row=compat.is_tracer(const))

        def read(atom):
            if isinstance(atom, core.Literal):
                return _Value(atom.val, is_row=False)
            return env[atom]

        for eqn in jaxpr.jaxpr.eqns:
            outs = self._equation(jaxpr.jaxpr, eqn, [read(v) for v in eqn.invars])
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(atom) for atom in jaxpr.jaxpr.outvars]

    def plain(self, values: Sequence[_Value], eqn=None, reason="an output") -> list:
        """Arrays; what is conditioned is materialised, which is noted or refused."""
        return [self._plain(value, eqn, reason) for value in values]

    def _plain(self, value: _Value, eqn, reason: str) -> Any:
        if not value.is_lazy:
            return value.data
        if not value.is_row:
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
                f"user by {primitive} at {source or 'the end'}: {reason}; condition "
                "another axis or rewrite that line, or allow it with strict=False"
            )
        self._seen[use] = None

    def _equation(self, jaxpr, eqn, inputs: list[_Value]) -> list[_Value]:
        name = eqn.primitive.name
        is_row = any(value.is_row for value in inputs)
        if not any(value.is_lazy for value in inputs):
            outs = compat.evaluate(jaxpr, eqn, [value.data for value in inputs])
            flags = row_outputs(eqn, [value.is_row for value in inputs])
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
                # Nothing but an index makes a row's of a w that was shared.
                is_row = any(v.is_row for v in inputs if v.is_lazy or name in INDEXING)
                return [
                    self.enter(_Value(x, is_row or not is_conditioned(x), path))
                    for x in (outs if isinstance(outs, list) else [outs])
                ]
        if name in compat.CUSTOM:
            reason = "its custom derivative is that of the whole parameter"
        if name in _ROWWISE and is_row:
            inputs = [dataclasses.replace(value, is_row=True) for value in inputs]
        outs = compat.evaluate(jaxpr, eqn, self.plain(inputs, eqn, reason))
        return [_Value(x, is_row=True) for x in outs]

    def _closure(self, jaxpr: core.ClosedJaxpr, like: Sequence[_Value]) -> Callable:
        """The jaxpr as a function of data, for what takes Python functions."""

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
        return _rows(fn(*(value.data for value in inputs)))

    def _cond(self, eqn, inputs):
        index, *operands = inputs
        branches = [self._closure(b, operands) for b in eqn.params["branches"]]
        data = [value.data for value in operands]
        return _rows(lax.switch(index.data.astype(int), branches, *data))

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
        return loop.outputs(last) + _rows(ys)

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
        return _rows(fn(*(value.data for value in inputs)))

    _CONTROL = {
        **dict.fromkeys(compat.CALLS, _inline),
        **dict.fromkeys(compat.REMAT, _remat),
        "cond": _cond,
        "scan": _scan,
        "while": _while,
        "shard_map": _shard_map,
    }


class _Loop:
    """The carry of a loop, without the parameters that it hands on unchanged.

    Such a parameter stays conditioned; one that changes is materialised.
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
        flags = [value.is_row or value.is_lazy for value in inputs]
        flags = loop_flags(body, num_consts, num_carry, flags)
        reason = "it changes in a loop"
        self.carry = [
            value if kept else _Value(*evaluator.plain([value], eqn, reason), flag)
            for value, kept, flag in zip(carry, self._kept, flags, strict=True)
        ]
        self.start = self.moving([value.data for value in self.carry])

    def moving(self, carry: Sequence[Any]) -> list:
        """What of a carry changes."""
        return [x for x, kept in zip(carry, self._kept, strict=True) if not kept]

    def inputs(self, moving: Sequence[Any]) -> list:
        """Constants and the whole carry."""
        rest = iter(moving)
        pairs = zip(self.carry, self._kept, strict=True)
        carry = [value.data if kept else next(rest) for value, kept in pairs]
        return [value.data for value in self.consts] + carry

    def outputs(self, moving: Sequence[Any]) -> list[_Value]:
        """The whole carry after the loop."""
        rest = iter(moving)
        return [
            value if kept else _Value(next(rest), is_row=True)
            for value, kept in zip(self.carry, self._kept, strict=True)
        ]


def _scannable(value: _Value) -> _Value:
    data = scannable(value.data) if value.is_lazy else value.data
    return dataclasses.replace(value, data=data)


def _rows(arrays: Sequence[Any]) -> list[_Value]:
    return [_Value(x, is_row=True) for x in arrays]
