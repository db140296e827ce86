"""Default layouts: the axes of every parameter of a model from its library's layers.

    found = layouts.linen(module, x)
    spec = found.spec(kernel=scale() + low_rank(8), bias=shift())

A layout says which axes of a parameter are inputs and which are outputs, and whether
its first axis stacks layers. It follows from the layer that owns the parameter
(`layers.py`): dense, convolution, attention, embedding, normalisation or recurrent.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import jax

from .layers import EQUINOX, HAIKU, LINEN, NNX, Layout, find
from .spec import Modulation, path_name
from .uses import table

ROLES = ("kernel", "bias", "embedding", "norm")


@dataclasses.dataclass(frozen=True)
class Layouts:
    """The layouts of a model's parameters; prints as a table.

    Attributes:
      shapes: {path: shape} of all parameters.
      layouts: {path: layout}; parameters of layers that are not known have none.
      prefix: a regular expression of what may come before each path.
    """

    shapes: dict[str, tuple[int, ...]]
    layouts: dict[str, Layout]
    prefix: str = ""

    def spec(
        self,
        *,
        kernel: Modulation | None = None,
        bias: Modulation | None = None,
        embedding: Modulation | None = None,
        norm: Modulation | None = None,
        only: str = ".*",
    ) -> list[tuple[str, Modulation]]:
        """Makes a spec, with a pair of path and modulation for each parameter.

        Args:
          kernel: modulation of kernels of dense, convolution, attention and recurrent
            layers, without a layout; None leaves them as they are.
          bias: modulation of biases, those of normalisations too.
          embedding: modulation of tables of embeddings.
          norm: modulation of the gains of normalisations.
          only: a regular expression that the full path must match.

        Raises:
          ValueError: if it would modulate nothing, and for a modulation that has a
            layout already.
        """
        wanted = dict(zip(ROLES, (kernel, bias, embedding, norm), strict=True))
        for role, modulation in wanted.items():
            if modulation is not None and modulation != modulation.layout():
                raise ValueError(f"`{role}` has a layout already: leave it out")
        chosen = [
            (self.prefix + re.escape(path), layout.of(modulation, len(shape)))
            for path, shape in self.shapes.items()
            if (layout := self.layouts.get(path)) is not None
            and (modulation := wanted[layout.role]) is not None
            and re.fullmatch(only, path)
        ]
        if not chosen:
            given = ", ".join(role for role in ROLES if wanted[role]) or "none of them"
            raise ValueError(
                f"the spec would modulate nothing: {given} given, `only` is {only!r}; "
                f"the parameters are\n{self}"
            )
        return chosen

    def __str__(self) -> str:
        head = ("parameter", "shape", "role", "inputs", "outputs", "stacked")
        return table([head, *map(self._row, self.shapes)])

    def _row(self, path: str) -> tuple[str, ...]:
        shape, layout = self.shapes[path], self.layouts.get(path)
        size = "x".join(map(str, shape)) or "scalar"
        if layout is None:
            return path, size, "not known", "", "", ""
        sides = (
            "x".join(str(shape[axis]) for axis in axes)
            for axes in (layout.input, layout.output)
        )
        return path, size, layout.role, *sides, "yes" * (len(shape) > layout.ndim)


def _checked(layout: Layout | None, shape, inside=None) -> Layout | None:
    """None if there are more axes than the layer's and one that stacks layers."""
    if layout is None or len(shape) - layout.ndim not in (0, 1):
        return None
    if inside is not None and tuple(shape[len(shape) - len(inside) :]) != inside:
        return None  # Layers are stacked along an axis that is not the first.
    return layout


def _paths(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): leaf for path, leaf in leaves}


def linen(module: Any, *args: Any, **kwargs: Any) -> Layouts:
    """Finds the layouts of a Flax Linen module, without computing its parameters.

    Args:
      module: the module.
      *args: arguments of `module.init` after the key, such as one example, which may
        be of `jax.ShapeDtypeStruct`.
      **kwargs: likewise.

    Returns:
      Layouts whose spec fits both `module.init(...)` and its collection "params".
    """
    import flax.linen as nn

    owners = {}

    def record(call, args, kwargs, context):
        out = call(*args, **kwargs)
        owner = context.module
        layer = find(LINEN, owner)
        if layer is not None and owner.scope is not None:
            own = nn.meta.unbox(owner.variables.get("params", {}))
            for name, w in own.items():
                if hasattr(w, "shape"):
                    path = "/".join((*owner.path, name))
                    owners[path] = layer(owner, name, w.ndim), tuple(w.shape)
        return out

    with nn.intercept_methods(record):
        init = functools.partial(module.init, **kwargs)
        variables = jax.eval_shape(init, jax.random.key(0), *args)
    shapes = {path: w.shape for path, w in _paths(variables["params"]).items()}
    layouts = {}
    for path, shape in shapes.items():
        # A box that holds a parameter with names of axes ends its path in "value".
        owned = owners.get(path) or owners.get(path.removesuffix("/value"))
        if owned is not None:
            layouts[path] = _checked(owned[0], shape, owned[1])
    return Layouts(shapes, layouts, prefix="(params/)?")


def nnx(module: Any) -> Layouts:
    """Finds the layouts of a Flax NNX module.

    Args:
      module: the module, or that of `nnx.eval_shape`.

    Returns:
      Layouts whose spec fits the state `nnx.state(module, nnx.Param)`.
    """
    from flax import nnx

    owners = {"/".join(map(str, path)): m for path, m in nnx.iter_modules(module)}
    params = _paths(nnx.state(module, nnx.Param))
    layouts = {}
    for path, w in params.items():
        owner, _, name = path.removesuffix("/value").rpartition("/")
        layer = find(NNX, owners.get(owner))
        if layer is not None:
            layouts[path] = _checked(layer(owners[owner], name, None), w.shape)
    return Layouts({path: w.shape for path, w in params.items()}, layouts)


def equinox(module: Any) -> Layouts:
    """Finds the layouts of an Equinox module, or of any tree of modules.

    Args:
      module: the module, or that of `eqx.filter_eval_shape`.

    Returns:
      Layouts whose spec fits `eqx.partition(module, eqx.is_array)[0]`.
    """
    leaves = jax.tree_util.tree_leaves_with_path(
        module, is_leaf=lambda x: find(EQUINOX, x) is not None
    )
    shapes, layouts = {}, {}
    for path, owner in leaves:
        layer = find(EQUINOX, owner)
        for inner, w in jax.tree_util.tree_leaves_with_path(owner):
            if not hasattr(w, "shape"):
                continue
            full = path_name((*path, *inner))
            shapes[full] = w.shape
            if layer is not None:
                layout = layer(owner, path_name(inner), None)
                layouts[full] = _checked(layout, w.shape)
    return Layouts(shapes, layouts)


def haiku(fn: Callable, *args: Any, **kwargs: Any) -> Layouts:
    """Finds the layouts of a function of Haiku modules.

    Args:
      fn: the function that `hk.transform` takes.
      *args: arguments of fn, such as one example, as for `linen`.
      **kwargs: likewise.

    Returns:
      Layouts whose spec fits the parameters of the transformed function's `init`.
    """
    import haiku as hk

    owners = {}

    def record(create, shape, dtype, init, context):
        layer, name = find(HAIKU, context.module), context.full_name.split("/")[-1]
        if layer is not None:
            layout = layer(context.module, name, len(shape))
            owners.setdefault(context.full_name, []).append((layout, tuple(shape)))
        return create(shape, dtype, init)

    def recorded(*args):
        with hk.custom_creator(record):
            return fn(*args, **kwargs)

    init = hk.transform_with_state(recorded).init
    params, _ = jax.eval_shape(init, jax.random.key(0), *args)
    shapes = {path: w.shape for path, w in _paths(params).items()}
    layouts = {}
    for path, shape in shapes.items():
        # Modules in a stack of layers do not know what comes before their own path.
        names = path.split("/")
        ends = ("/".join(names[n:]) for n in range(len(names)))
        owned = next((owners[end] for end in ends if end in owners), ())
        fitting = {_checked(layout, shape, inside) for layout, inside in owned}
        if len(fitting - {None}) == 1:
            (layouts[path],) = fitting - {None}
    return Layouts(shapes, layouts)
