"""Runs a model that knows nothing of `Conditioned` on conditioned parameters.

The model is traced to a jaxpr, which is evaluated again with a rule for each primitive
that a conditioned parameter meets. If a primitive has no rule, or its result does not
separate into parts, the parameter is materialised, that is, built as one array. The
result is right, but under `jax.vmap` each user gets a copy of the weight: `report`
lists where this happens, `strict=True` refuses it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import compat
from .evaluator import Evaluator
from .leaf import is_conditioned
from .program_cost import Cost, program_cost
from .uses import Report
from .values import Value


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
        evaluator = Evaluator(strict, inline, compat.caller())
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
    evaluator = Evaluator(strict=False, called_at=compat.caller())
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
            values.append(evaluator.enter(Value(x, per_example, name)))
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
