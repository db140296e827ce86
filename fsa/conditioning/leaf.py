"""A parameter that depends on a latent and is never built as one array.

`Conditioned` keeps a weight w and its modulations apart and stands for

    w_z = w * prod_i (1 + scale_i) + sum_t sum_r prod_j factor_tj[..., r]

so a bias shifted by beta is `w + beta`, and a low-rank update is
`w + sum_r a_r s_r b_r`. Every *part* (w, a scale, a factor) has w's axes, of size 1
where it is broadcast; a factor has one more axis at the end, the rank. An operation
that moves axes of w moves the same axes of its parts; a product with w (`products.py`)
multiplies by the parts one after the other.

Shapes: R rank.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Term = tuple[jax.Array, ...]


class NotSeparable(Exception):
    """Raised by an operation whose result has no parts smaller than the weight."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Delta:
    """The modulations of one parameter, without the parameter; see `Conditioned`.

    Attributes:
      scales: arrays with the parameter's number of axes; `scale` multiplies by
        `1 + scale`.
      terms: tuples of factors, each with one more axis, R, at the end.
    """

    scales: tuple[jax.Array, ...] = ()
    terms: tuple[Term, ...] = ()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Conditioned:
    """A lazy parameter w_z: a pytree of w and its modulations (module docstring).

    `x @ w_z` and `w_z @ x` multiply part by part; `operators.py` defines them.

    Attributes:
      base: w.
      scales: see `Delta`; stored without the 1, so that a modulation far below the
        resolution of bfloat16 survives.
      terms: see `Delta`.
    """

    base: jax.Array
    scales: tuple[jax.Array, ...] = ()
    terms: tuple[Term, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of w_z."""
        return self.base.shape

    @property
    def dtype(self) -> Any:
        """Dtype of w, and of w_z when it is built."""
        return self.base.dtype

    @property
    def ndim(self) -> int:
        """Number of axes of w_z."""
        return self.base.ndim

    @property
    def size(self) -> int:
        """Number of entries of w_z."""
        return self.base.size

    @property
    def T(self) -> "Conditioned":  # noqa: N802
        """All axes reversed."""
        return self.transpose()

    @property
    def is_compact(self) -> bool:
        """Whether w_z is larger than each part, so that building it costs memory.

        A bias with a shift of its own shape is not compact: keeping it lazy saves
        nothing.
        """
        alone = [term[0].size // term[0].shape[-1] for term in self.terms if _one(term)]
        return self.size > max([1, *(scale.size for scale in self.scales), *alone])

    def materialize(self, dtype: Any = None) -> jax.Array:
        """Builds w_z, computed in float32 or wider.

        Args:
          dtype: dtype of the result; `self.dtype` if None.
        """
        wide = jnp.promote_types(self.dtype, jnp.float32)
        w = self.base.astype(wide)
        for scale in self.scales:
            w = w * (1 + scale)
        for term in self.terms:
            w = w + self._outer(term)
        return w.astype(self.dtype if dtype is None else dtype)

    def _outer(self, term: Term) -> jax.Array:
        """Computes the sum over the rank of one term's product."""
        shared = tuple(range(self.ndim))
        out = [i for i in shared if any(f.shape[i] > 1 for f in term)]
        operands = [x for f in term for x in squeezed(f, (*shared, self.ndim))]
        product = jnp.einsum(*operands, out, optimize="optimal")
        return product.reshape([self.shape[i] if i in out else 1 for i in shared])

    def map_parts(
        self, fn: Callable[[jax.Array], jax.Array], base: jax.Array | None = None
    ) -> "Conditioned":
        """Applies a function of an array with w's axes to each part.

        Args:
          fn: the function; its argument has size 1 where a part is broadcast, and never
            has the rank axis.
          base: the new w, if it is not `fn(self.base)`.
        """
        over_rank = jax.vmap(fn, -1, -1)
        return Conditioned(
            fn(self.base) if base is None else base,
            tuple(fn(scale) for scale in self.scales),
            tuple(tuple(over_rank(f) for f in term) for term in self.terms),
        )

    def astype(self, dtype: Any) -> "Conditioned":
        """Casts w to a dtype; modulations keep theirs."""
        return dataclasses.replace(self, base=self.base.astype(dtype))

    def transpose(self, *axes: int) -> "Conditioned":
        """Transposes as `jnp.transpose` does; reverses all axes if none are given."""
        order = axes[0] if axes and isinstance(axes[0], Sequence) else axes
        order = tuple(order) or tuple(reversed(range(self.ndim)))
        return self.map_parts(lambda part: part.transpose(order))

    def reshape(self, *shape: int) -> "Conditioned":
        """Reshapes as `jnp.reshape` does, if each part stays smaller than w_z.

        Raises:
          ValueError: if axes that are modulated separately would be merged.
        """
        new = shape[0] if shape and isinstance(shape[0], Sequence) else shape
        new = jax.eval_shape(lambda w: w.reshape(new), self.base).shape
        try:
            return reshape(self, new)
        except NotSeparable as error:
            raise ValueError(f"reshape from {self.shape} to {new}: {error}") from None

    def __getitem__(self, index: Any) -> "Conditioned":
        """Indexes with integers, slices, `...` or integer arrays, as of an array.

        Raises:
          TypeError: for None and boolean masks, which change axes in other ways.
        """
        return _getitem(self, index)


def is_conditioned(x: Any) -> bool:
    """Whether x is a `Conditioned`; for `is_leaf` of `jax.tree` functions."""
    return isinstance(x, Conditioned)


def _one(term: Term) -> bool:
    return len(term) == 1


def squeezed(part: jax.Array, labels: Sequence[int]) -> list:
    """Returns `[array, labels]` for `jnp.einsum`, without the axes of size 1."""
    kept = [i for i, size in enumerate(part.shape) if size > 1]
    sizes = [part.shape[i] for i in kept]
    return [part.reshape(sizes), [labels[i] for i in kept]]


def reshape(leaf: Conditioned, shape: Sequence[int]) -> Conditioned:
    """Splits and merges axes; a part is broadcast only along axes that are merged.

    Raises:
      NotSeparable: if a part would become as large as w_z.
    """
    groups = _axis_groups(leaf.shape, shape)

    def part(x):
        full, new = list(x.shape), [1] * len(shape)
        for old_axes, new_axes in groups:
            if all(x.shape[i] == 1 for i in old_axes):
                continue
            for i in old_axes:
                full[i] = leaf.shape[i]
            for i in new_axes:
                new[i] = shape[i]
        if x.size < leaf.size == math.prod(new):
            raise NotSeparable("it merges axes that are modulated separately")
        return jnp.broadcast_to(x, full).reshape(new)

    return leaf.map_parts(part, base=leaf.base.reshape(shape))


def _axis_groups(old: Sequence[int], new: Sequence[int]):
    """Returns the smallest runs of old and new axes that hold the same entries."""
    groups, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        old_axes, new_axes = [], []
        old_size = new_size = 1
        while not (old_axes or new_axes) or old_size != new_size:
            if j == len(new) or (i < len(old) and old_size <= new_size):
                old_axes.append(i)
                old_size *= old[i]
                i += 1
            else:
                new_axes.append(j)
                new_size *= new[j]
                j += 1
        groups.append((old_axes, new_axes))
    return groups


def _getitem(leaf: Conditioned, index: Any) -> Conditioned:
    index = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in [i if i is Ellipsis else None for i in index]:
        at = next(n for n, i in enumerate(index) if i is Ellipsis)
        index[at : at + 1] = [slice(None)] * (leaf.ndim - len(index) + 1)
    index += [slice(None)] * (leaf.ndim - len(index))
    for i in index:
        arrays = not isinstance(i, slice) and i is not None
        if not (isinstance(i, slice) or arrays and _is_integer(i)):
            raise TypeError(f"a conditioned parameter cannot be indexed with {i!r}")
    if len(index) > leaf.ndim:
        raise IndexError(f"{len(index)} indices for {leaf.ndim} axes")

    def part(x):
        def one(axis, i):
            if x.shape[axis] == leaf.shape[axis]:
                return i
            if isinstance(i, slice):
                return slice(None)
            return 0 if np.ndim(i) == 0 else jnp.zeros((1,) * np.ndim(i), int)

        return x[tuple(one(axis, i) for axis, i in enumerate(index))]

    return leaf.map_parts(part)


def _is_integer(index: Any) -> bool:
    return not isinstance(index, bool) and jnp.issubdtype(
        jnp.result_type(index), jnp.integer
    )


def slice_parts(leaf, starts, sizes, strides=None) -> Conditioned:
    """Slices each part: `lax.slice` with `strides`, `lax.dynamic_slice` without.

    Args:
      leaf: the parameter.
      starts: first index along each axis.
      sizes: sizes for `lax.dynamic_slice`, end indices for `lax.slice`.
      strides: as in `lax.slice`.
    """

    def part(x):
        broadcast = [x.shape[i] < leaf.shape[i] for i in range(leaf.ndim)]
        start = [0 if b else s for b, s in zip(broadcast, starts, strict=True)]
        size = [1 if b else s for b, s in zip(broadcast, sizes, strict=True)]
        if strides is None:
            return lax.dynamic_slice(x, start, size)
        step = [1 if b else s for b, s in zip(broadcast, strides, strict=True)]
        return lax.slice(x, start, size, step)

    return leaf.map_parts(part)


def broadcast_in_dim(leaf, shape, dimensions) -> Conditioned:
    """Applies `lax.broadcast_in_dim`; parts get new axes of size 1."""

    def part(x):
        sizes = [1] * len(shape)
        for axis, new in enumerate(dimensions):
            # An axis of size 1 in w itself stays of size 1 in the parts.
            kept = x.shape[axis] == leaf.shape[axis] > 1
            sizes[new] = shape[new] if kept else 1
        return lax.broadcast_in_dim(x, sizes, dimensions)

    base = lax.broadcast_in_dim(leaf.base, shape, dimensions)
    return leaf.map_parts(part, base=base)


def scale_by(leaf: Conditioned, op: Callable[[jax.Array], jax.Array]) -> Conditioned:
    """Multiplies w_z by a number: `op` does it to w and to one factor of each term."""
    terms = tuple((op(term[0]), *term[1:]) for term in leaf.terms)
    return Conditioned(op(leaf.base), leaf.scales, terms)


def add(leaf: Conditioned, x: jax.Array, *, shared: bool) -> Conditioned:
    """Adds a scalar or an array of w's shape to w_z.

    Args:
      leaf: the parameter.
      x: what is added.
      shared: whether all examples share x; only then may it be added to w itself.
    """
    if shared and not leaf.scales:
        return dataclasses.replace(leaf, base=leaf.base + x)
    full = x.reshape((1,) * leaf.ndim) if x.ndim == 0 else x
    return dataclasses.replace(leaf, terms=(*leaf.terms, (full[..., None],)))


def concatenate(leaves: Sequence[Conditioned], axis: int) -> Conditioned:
    """Concatenates parameters along an axis, as models do with attention heads.

    Scales that vary along the axis are concatenated; each term is padded with zeros to
    the new shape.

    Raises:
      NotSeparable: if a scale does not vary along the axis, since each block would need
        a scale of its own there.
    """
    blocks = [leaf.shape[axis] for leaf in leaves]
    patterns: dict[tuple[bool, ...], list] = {}
    for n, leaf in enumerate(leaves):
        for scale in leaf.scales:
            along = scale.shape[axis] == blocks[n]
            if not along and len(leaves) > 1:
                raise NotSeparable(f"a scale does not vary along axis {axis}")
            pattern = tuple(size > 1 for size in scale.shape)
            found = patterns.setdefault(pattern, [None] * len(leaves))
            found[n] = (
                scale if found[n] is None else found[n] + scale + found[n] * scale
            )
    scales = []
    for found in patterns.values():
        some = next(scale for scale in found if scale is not None)
        shapes = [(*some.shape[:axis], b, *some.shape[axis + 1 :]) for b in blocks]
        filled = [
            jnp.zeros(shape, some.dtype) if scale is None else scale
            for scale, shape in zip(found, shapes, strict=True)
        ]
        scales.append(jnp.concatenate(filled, axis))
    terms = []
    for n, leaf in enumerate(leaves):
        before, after = sum(blocks[:n]), sum(blocks[n + 1 :])
        for term in leaf.terms:
            along = [f for f in term if f.shape[axis] == blocks[n]][:1] or [term[0]]
            place = next(i for i, f in enumerate(term) if f is along[0])
            widened = list(along[0].shape)
            widened[axis] = blocks[n]
            pad = [(0, 0)] * along[0].ndim
            pad[axis] = (before, after)
            padded = jnp.pad(jnp.broadcast_to(along[0], widened), pad)
            rest = [
                f if f.shape[axis] == 1 else jnp.pad(f, pad)
                for i, f in enumerate(term)
                if i != place
            ]
            terms.append((padded, *rest))
    return Conditioned(
        jnp.concatenate([leaf.base for leaf in leaves], axis),
        tuple(scales),
        tuple(terms),
    )


def scannable(leaf: Conditioned) -> Conditioned:
    """Broadcasts every part along w's leading axis, which `lax.scan` slices."""

    def part(x):
        return jnp.broadcast_to(x, (leaf.shape[0], *x.shape[1:]))

    return leaf.map_parts(part)
