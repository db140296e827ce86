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
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from . import compat, hoisting, products
from .custom_rules import CALL, apply_rule
from .dependence import dependent_carries, dependent_outputs
from .leaf import NotSeparable, build_at_tokens, is_conditioned, scannable
from .program_cost import Cost, program_cost
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
      numbers_per_token: numbers that are read for each token of a packed example, 0 if
        the parameter does not differ by segment.
    """

    path: str
    shape: tuple[int, ...]
    primitive: str
    source: str
    bytes_per_user: int
    reason: str
    numbers_per_token: int = 0


@dataclasses.dataclass(frozen=True)
class Report:
    """Every use of every conditioned parameter; prints as a table, with the cost.

    Attributes:
      uses: the uses, in the order of the program.
      cost: of one call with conditioned parameters, without the hypernetwork.
      unconditioned: of one call with the parameters alone.
      folding: of folding the parameters for a user, once; its bytes are those of the
        folded parameters. None if they differ by segment and cannot be folded.
    """

    uses: tuple[Use, ...]
    cost: Cost
    unconditioned: Cost
    folding: Cost | None

    @property
    def ratio(self) -> float:
        """Operations of a call, relative to the unconditioned model."""
        return self.cost.flops / max(self.unconditioned.flops, 1)

    @property
    def calls_to_fold(self) -> float:
        """Calls for one user from which on folding takes no more operations.

        It is infinite if parameters cannot be folded, or a call costs no more.
        """
        saved = self.cost.flops - self.unconditioned.flops
        if self.folding is None or saved <= 0:
            return math.inf
        return max(1.0, math.ceil(self.folding.flops / saved))

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
                _how(use),
                use.source,
            )
            for use in self.uses
        ]
        return "\n".join([table([head, *rows]), *self._costs(), *self._advice()])

    def _costs(self) -> list[str]:
        own, plain = self.cost, self.unconditioned
        lines = [
            f"One call: {_short(own.flops)}FLOP, {self.ratio:.3f} times those of the "
            f"unconditioned model; {_short(own.bytes)}B in products and look-ups, "
            f"{own.bytes / max(plain.bytes, 1):.3f} times."
        ]
        tokens = sum(use.numbers_per_token for use in self.uses)
        if tokens:
            lines.append(f"Each token reads {tokens:,} numbers of its segment.")
        return lines

    def _advice(self) -> list[str]:
        built = ", ".join(sorted({use.path for use in self.materialized}))
        lines = []
        if built:
            lines.append(f"Built in each call: {built}. Folding once is better there.")
        if self.folding is not None and self.calls_to_fold < math.inf:
            lines.append(
                f"Folding is as good from {self.calls_to_fold:,.0f} calls for one user "
                f"on: it costs {_short(self.folding.flops)}FLOP once, and "
                f"{_short(self.folding.bytes)}B of memory for each user."
            )
        return lines


def _short(number: int) -> str:
    """Formats a number with the prefix of its size, as 12.3 M."""
    for size, prefix in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.3g} {prefix}"
    return f"{number} "


def _how(use: Use) -> str:
    if use.bytes_per_user:
        return f"materialised: {use.reason}"
    if use.numbers_per_token:
        return f"by parts, {use.numbers_per_token:,} numbers a token"
    return "by parts"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Formats rows, of which the first is the head, as left-aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def bridge(
    apply: Callable, *, strict: bool = False, inline: Sequence[str] = ()
) -> Callable:
    """Makes a function of parameters accept conditioned ones.

    Args:
      apply: a pure function whose first argument is a pytree of parameters. Arguments
        that hold no arrays (None, flags, strings, functions) are passed on unchanged.
      strict: refuse to materialise.
      inline: names of functions with custom derivatives that are evaluated part by part
        where they take a conditioned parameter, and differentiated as any program.

    Returns:
      A function with the same arguments, any of which may have `Conditioned` leaves. It
      works under jit, grad and vmap as `apply` does. If a function with a custom
      derivative that is not in `inline` takes a conditioned parameter, the parameter is
      materialised, so that the custom derivative is kept. What is no array in the
      result, such as a number or a text, is returned as `apply` returns it.

    Raises:
      MaterializationError: when the returned function is called, with `strict`; the
        message names the parameter, the primitive and the line of the model.
    """

    def bridged(*args, **kwargs):
        evaluator = _Evaluator(strict, inline, compat.caller())
        return _run(apply, args, kwargs, evaluator)

    return bridged


def report(apply: Callable, *args: Any, **kwargs: Any) -> Report:
    """Lists how `bridge(apply)` uses conditioned parameters and what that costs.

    Nothing is run: the cost is counted from the shapes of one call, see
    `program_cost.py`.

    Args:
      apply: as for `bridge`.
      *args: arguments of `apply` for one example: parameters with conditioned leaves
        first. Any array may be a `jax.ShapeDtypeStruct`.
      **kwargs: likewise.
    """
    evaluator = _Evaluator(strict=False, called_at=compat.caller())
    whole = args, kwargs
    cost = _cost(lambda args, kwargs: _run(apply, args, kwargs, evaluator), whole)
    bases = jax.tree.map(
        lambda x: x.base if is_conditioned(x) else x, whole, is_leaf=is_conditioned
    )
    unconditioned = _cost(lambda args, kwargs: apply(*args, **kwargs), bases)
    lazy = jax.tree.leaves(whole, is_leaf=is_conditioned)
    folding = _folding_cost([leaf for leaf in lazy if is_conditioned(leaf)])
    return Report(tuple(evaluator.uses), cost, unconditioned, folding)


def _cost(fn: Callable, args: tuple) -> Cost:
    """The cost of `fn(*args)`, of which only arrays are traced."""
    leaves, treedef = jax.tree.flatten(args)
    arrays = [i for i, x in enumerate(leaves) if _is_array(x)]

    def run(values):
        filled = list(leaves)
        for i, value in zip(arrays, values, strict=True):
            filled[i] = value
        fn(*jax.tree.unflatten(treedef, filled))

    return program_cost(jax.make_jaxpr(run)([leaves[i] for i in arrays]))


def _folding_cost(lazy: Sequence[Any]) -> Cost | None:
    if any(leaf.segments is not None for leaf in lazy):
        return None
    total = Cost()
    for leaf in lazy:
        dtype = jnp.dtype(jnp.float32 if leaf.is_integer else leaf.dtype)
        built = _cost(lambda leaf, dtype=dtype: leaf.materialize(dtype), (leaf,))
        total += Cost(built.flops, leaf.size * dtype.itemsize)
    return total


@dataclasses.dataclass(frozen=True)
class _Value:
    """An array or a conditioned parameter in the program.

    Attributes:
      data: the array or the `Conditioned`.
      per_example: whether it, or the w of a conditioned parameter, depends on the
        example, by its data or by a modulation.
      path: path of the parameter that it comes from, if it is conditioned.
      source: an array that `data` is a broadcast of, and the axes that it fills, if
        that is known.
      number: what every entry is, if that is known.
    """

    data: Any
    per_example: bool
    path: str = ""
    source: tuple[Any, Sequence[int]] | None = None
    number: float | None = None

    @property
    def is_lazy(self) -> bool:
        return is_conditioned(self.data)

    @property
    def is_zero(self) -> bool:
        return self.number == 0

    @property
    def narrow(self) -> Any:
        if self.source is None:
            return self.data
        array, axes = self.source
        sizes = [1] * self.data.ndim
        for axis, size in zip(axes, array.shape, strict=True):
            sizes[axis] = size
        return array.reshape(sizes)

    def replace(self, data: Any, narrow: Any = None) -> "_Value":
        source = None if narrow is None else (narrow, range(narrow.ndim))
        return _Value(data, self.per_example, self.path, source)

    def converted(self, eqn: core.JaxprEqn, data: Any) -> "_Value":
        """The value after an equation that broadcasts or casts it."""
        name, params = eqn.primitive.name, eqn.params
        if name == "broadcast_in_dim":
            source = self.data, params["broadcast_dimensions"]
        elif name == "convert_element_type" and self.source is not None:
            source = self.source[0].astype(params["new_dtype"]), self.source[1]
        else:
            source = None
        number = self.number if name in _CONVERSIONS else None
        return _Value(data, self.per_example, self.path, source, number)


_CONVERSIONS = {"broadcast_in_dim", "convert_element_type"}


def _is_array(x: Any) -> bool:
    """Whether x is traced; numbers, those of NumPy too, stay as they are."""
    return isinstance(x, jax.Array | np.ndarray | jax.ShapeDtypeStruct)


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

    fixed = []

    def flat(arrays):
        filled = [x for _, x in leaves]
        for i, array in zip(positions, arrays, strict=True):
            filled[i] = array
        args, kwargs = jax.tree.unflatten(treedef, filled)
        outs, structure = jax.tree.flatten(apply(*args, **kwargs))
        fixed[:] = [structure, outs]
        return [x for x in outs if isinstance(x, jax.Array)]

    jaxpr = jax.make_jaxpr(flat)([_shown(value.data) for value in values])
    arrays = iter(evaluator.plain(evaluator.run(jaxpr, values)))
    structure, outs = fixed
    # What is no array, such as a number or a text, is returned as it is.
    return jax.tree.unflatten(
        structure,
        [jnp.asarray(next(arrays)) if isinstance(x, jax.Array) else x for x in outs],
    )


def _shown(data: Any) -> Any:
    """What the model sees: w, of the type that w_z would have inside shard_map."""
    if not is_conditioned(data):
        return data
    over = [compat.varies_over(part) for part in jax.tree.leaves(data)]
    return compat.vary(data.base, sorted(frozenset().union(*over)))


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


def _at_tokens(value: _Value, eqn) -> _Value:
    """Builds a parameter of several segments that is spread over tokens, as a bias."""
    if not value.is_lazy or value.data.segments is None or value.data.shape[0] != 1:
        return value
    shape = eqn.outvars[0].aval.shape
    if shape[0] != value.data.segments.shape[0]:
        return value
    return _Value(build_at_tokens(value.data), per_example=True)


# If one input depends on the example, the result of these has the same size for each
# example in the unconditioned program as well.
_ELEMENTWISE = {
    *("add", "sub", "mul", "div", "max", "min", "pow", "select_n", "add_any"),
    "concatenate",
}


class _Evaluator:
    """Evaluates jaxprs on `_Value`s and records how conditioned parameters are used."""

    def __init__(self, strict: bool, inline: Sequence[str] = (), called_at: str = ""):
        self._strict = strict
        self._called_at = called_at
        self._inlined = (inline,) if isinstance(inline, str) else tuple(inline)
        self._seen: dict[Use, None] = {}

    @property
    def uses(self) -> list[Use]:
        # The body of a loop may be traced more than once.
        return list(self._seen)

    def enter(self, value: _Value) -> _Value:
        """Builds a parameter if that costs no memory: a small or an indexed one."""
        if not value.is_lazy or (value.data.is_compact and not value.per_example):
            return value
        if value.data.is_integer:  # It is built once the model casts it to floats.
            return value
        if not value.per_example:
            self._note(value, "condition", "", "")
        return _Value(_built(value.data), per_example=True)

    def run(
        self,
        jaxpr: core.ClosedJaxpr,
        inputs: Sequence[_Value],
        known: dict[core.Var, _Value] | None = None,
        joined: dict[int, tuple] | None = None,
    ) -> list[_Value]:
        """Evaluates a jaxpr; outputs may be conditioned.

        Args:
          jaxpr: the jaxpr.
          inputs: its inputs.
          known: values that were computed before; their equations are left out.
          joined: products that are computed at once, see `_Hoisted`.
        """
        env = self.constants(jaxpr)
        env |= dict(zip(jaxpr.jaxpr.invars, inputs, strict=True)) | (known or {})
        self.evaluate(jaxpr, jaxpr.jaxpr.eqns, env, joined or {})
        return [_read(env, atom) for atom in jaxpr.jaxpr.outvars]

    @staticmethod
    def constants(jaxpr: core.ClosedJaxpr) -> dict[core.Var, _Value]:
        """Returns the values of a jaxpr's constants."""
        env = {}
        for var, const in zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True):
            if isinstance(const, np.ndarray):  # It may be wider than jax is set to.
                const = const.astype(var.aval.dtype, copy=False)
            env[var] = _Value(const, per_example=compat.is_tracer(const))
        return env

    def evaluate(self, jaxpr, eqns: Sequence[core.JaxprEqn], env: dict, joined=()):
        """Adds to `env` what equations compute that is not there yet."""
        for eqn in eqns:
            if eqn.outvars and all(var in env for var in eqn.outvars):
                continue
            inputs = [_read(env, v) for v in eqn.invars]
            if id(eqn) in joined and (outs := self._joint(inputs, *joined[id(eqn)])):
                env.update(outs)
                continue
            outs = self._equation(jaxpr.jaxpr, eqn, inputs)
            env.update(zip(eqn.outvars, outs, strict=True))

    def _joint(self, inputs: list[_Value], weight, parts) -> dict[core.Var, _Value]:
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
        return dict(zip(variables, _per_example(outs), strict=True))

    def plain(self, values, eqn=None, reason="an output", remedy="") -> list:
        """Returns arrays; materialises conditioned values and records or refuses it."""
        return [self._plain(value, eqn, reason, remedy) for value in values]

    def _plain(self, value: _Value, eqn, reason: str, remedy: str) -> Any:
        if not value.is_lazy:
            return value.data
        if not value.per_example or value.data.is_integer:
            primitive = eqn.primitive.name if eqn else "return"
            source = compat.source(eqn, self._called_at) if eqn else ""
            self._note(value, primitive, source, reason, remedy)
        return _built(value.data)

    def _note(
        self, value: _Value, primitive: str, source: str, reason: str, remedy: str = ""
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

    def _note_by_parts(self, eqn, values: Sequence[_Value]):
        source = compat.source(eqn, self._called_at)
        for value in values:
            if value.is_lazy:
                self._note(value, eqn.primitive.name, source, "")

    def _equation(self, jaxpr, eqn, inputs: list[_Value]) -> list[_Value]:
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
        return _per_example(
            compat.evaluate(jaxpr, eqn, self.plain(inputs, eqn, reason, remedy))
        )

    def _unconditioned(self, jaxpr, eqn, inputs: list[_Value]) -> list[_Value]:
        outs = compat.evaluate(jaxpr, eqn, [value.data for value in inputs])
        if eqn.primitive.name in _CONVERSIONS:
            return [inputs[0].converted(eqn, outs[0])]
        flags = dependent_outputs(eqn, [value.per_example for value in inputs])
        return [_Value(x, f) for x, f in zip(outs, flags, strict=True)]

    def _by_parts(self, eqn, inputs: list[_Value]) -> list[_Value]:
        name = eqn.primitive.name
        outs = RULES[name](eqn, *inputs)
        self._note_by_parts(eqn, inputs)
        path = next(value.path for value in inputs if value.is_lazy)
        # Only an index makes a shared w depend on the example.
        per_example = any(
            value.per_example for value in inputs if value.is_lazy or name in INDEXING
        )
        return [
            self.enter(_Value(x, per_example or not is_conditioned(x), path))
            for x in (outs if isinstance(outs, list) else [outs])
        ]

    def _closure(
        self, jaxpr: core.ClosedJaxpr, like: Sequence[_Value], eqn, reason: str
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

    def _alike(self, like: Sequence[_Value], data: Sequence[Any]) -> list[_Value]:
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
            _Value(x, per_example or not is_conditioned(x), lazy[0].path) for x in outs
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
        return _per_example(lax.switch(index.data.astype(int), branches, *data))

    def _scan(self, eqn, inputs):
        body, num_consts, num_carry, options = compat.scan_parts(eqn)
        loop = _Loop(self, eqn, body, num_consts, num_carry, inputs)
        xs = [_scannable(value) for value in inputs[num_consts + num_carry :]]
        like = [*loop.consts, *loop.carry, *xs]
        hoisted = _Hoisted(self, body, loop.consts, num_carry, xs)

        def advance(moving, slices):
            slices, early = slices
            values = self._alike(like, [*loop.inputs(moving), *slices])
            known = hoisted.known(early)
            outs = self.run(hoisted.body, values, known, hoisted.joined)
            outs = self.plain(outs, eqn, "each step returns it", _OUTSIDE)
            return loop.moving(outs[:num_carry]), outs[num_carry:]

        data = [value.data for value in xs], hoisted.early
        last, ys = lax.scan(advance, loop.start, data, **options)
        return loop.outputs(last) + _per_example(ys)

    def _while(self, eqn, inputs):
        cond, num_cond, body, num_body = compat.while_parts(eqn)
        cond_consts, inputs = inputs[:num_cond], inputs[num_cond:]
        loop = _Loop(self, eqn, body, num_body, len(inputs) - num_body, inputs)
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
        return _per_example(fn(*(value.data for value in inputs)))

    _CONTROL = {
        **dict.fromkeys(compat.CALLS, _inline),
        **dict.fromkeys(compat.REMAT, _remat),
        "cond": _cond,
        "scan": _scan,
        "while": _while,
        "shard_map": _shard_map,
        CALL.name: _with_rule,
    }


class _Hoisted:
    """What the body of a scan need not compute in each step (`hoisting.py`).

    Attributes:
      body: the body without what is computed before the loop.
      early: arrays with an axis of steps in front, as `lax.scan` slices them.
      joined: products that are computed at once: {id of an equation: (the joined
        weight, pairs of each equation and its own weight)}.
    """

    def __init__(self, evaluator, body, consts, num_carry, xs):
        eqns, variables = body.jaxpr.eqns, body.jaxpr.invars
        self._evaluator, self._body = evaluator, body
        self._env = evaluator.constants(body)
        self._env |= dict(zip(variables, consts, strict=False))
        lazy = [var for var, value in self._env.items() if value.is_lazy]
        constant = hoisting.following_from(eqns, self._env)
        wanted = hoisting.touched(constant, lazy)
        evaluator.evaluate(body, hoisting.slice_of(constant, wanted), self._env)

        slices = variables[len(consts) + num_carry :]
        arrays = {v: x for v, x in zip(slices, xs, strict=True) if not x.is_lazy}
        once = {id(eqn) for eqn in constant}
        mapped = [e for e in eqns if id(e) in once or hoisting.acts_alike_mapped(e)]
        free = hoisting.following_from(mapped, [*self._env, *arrays])
        found = hoisting.products(free, self._is_weight)
        # What is constant is known already.
        outs = [e.outvars[0] for e, *_ in found if e.outvars[0] not in self._env]
        wanted = hoisting.frontier(eqns, free, outs, body.jaxpr.outvars)
        streamed = [*slices, *body.jaxpr.outvars[num_carry:]]
        moving = [eqn for eqn in free if id(eqn) not in once]
        self._names = hoisting.affordable(wanted, moving, streamed)
        needed = hoisting.slice_of(free, self._names)
        self.early = self._run_early(needed, arrays) if self._names else []
        left = hoisting.left(eqns, [*self._env, *self._names], body.jaxpr.outvars)
        self.body = core.ClosedJaxpr(body.jaxpr.replace(eqns=left), body.consts)
        self.joined = self._join(left)

    def _is_weight(self, var) -> bool:
        return var in self._env and self._env[var].is_lazy

    def _run_early(self, eqns, arrays: dict) -> list[jax.Array]:
        """Computes what no step's state is needed for, for all steps at once."""

        def one(data):
            pairs = zip(arrays.items(), data, strict=True)
            env = self._env | {var: value.replace(x) for (var, value), x in pairs}
            self._evaluator.evaluate(self._body, eqns, env)
            return [env[var].data for var in self._names]

        return jax.vmap(one)([value.data for value in arrays.values()])

    def _join(self, eqns) -> dict[int, tuple]:
        """Joins the weights of products of one array."""
        joined = {}
        for group in hoisting.alike(hoisting.products(eqns, self._is_weight)):
            weights = [self._env[weight] for _, _, weight in group]
            first, _, weight = group[0]
            numbers = first.params["dimension_numbers"]
            data, on_left = [w.data for w in weights], first.invars[0] is weight
            one = products.joined_outputs(data, numbers, on_left)
            if one is not None:
                own = [eqn for eqn, _, _ in group]
                parts = list(zip(own, weights, strict=True))
                joined |= {id(eqn): (one, parts) for eqn in own}
        return joined

    def known(self, early: Sequence[Any]) -> dict[core.Var, _Value]:
        """Returns the values that one step is given."""
        values = _per_example(early)
        return self._env | dict(zip(self._names, values, strict=True))


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


def _read(env: dict[core.Var, _Value], atom) -> _Value:
    if isinstance(atom, core.Literal):
        number = np.asarray(atom.val, atom.aval.dtype)
        return _Value(number, per_example=False, number=number.item())
    return env[atom]


def _scannable(value: _Value) -> _Value:
    data = scannable(value.data) if value.is_lazy else value.data
    return dataclasses.replace(value, data=data)


def _per_example(arrays: Sequence[Any]) -> list[_Value]:
    return [_Value(x, per_example=True) for x in arrays]
