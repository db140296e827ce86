"""A parameter that depends on a latent and is never built as one array.

`Conditioned` keeps a weight w and its modulations apart and stands for

    w_z = w * prod_k gain_k * prod_i (1 + scale_i)
          + sum_t sum_r prod_j factor_tj[..., r]

so a bias shifted by beta is `w + beta`, and a low-rank update is
`w + sum_r a_r s_r b_r`. Every *part* (w, a gain, a scale, a factor) has w's axes, of
size 1 where it is broadcast; a factor has one more axis at the end, the rank. An
operation that moves axes of w moves the same axes of its parts; a product with w
(`products.py`) multiplies by the parts one after the other.

If one example holds tokens of several users, a part may differ by segment: it then has
one more axis at its very end, of segments, and `segments` says which is each token's.

Shapes: R rank; T tokens.
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
    """Raised by an operation whose result has no parts smaller than the weight.

    Attributes:
      remedy: what a user can do about it, if it is special.
    """

    def __init__(self, reason: str, remedy: str = ""):
        """Stores the remedy; `str` gives the reason."""
        super().__init__(reason)
        self.remedy = remedy


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


_FORGOTTEN = (
    "a conditioned parameter is no array: call the model through `bridge(model)`, or "
    "use `matmul`, `einsum`, `take` and `conv` of fsa.conditioning"
)


class _Named(type):
    """What errors of jax.numpy show, which name the type of a wrong argument."""

    def __repr__(cls) -> str:
        return f"{cls.__module__}.{cls.__qualname__} ({_FORGOTTEN})"


def _forgotten(self, *_):
    raise TypeError(_FORGOTTEN)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Conditioned(metaclass=_Named):
    """A lazy parameter w_z: a pytree of w and its modulations (module docstring).

    `x @ w_z` and `w_z @ x` multiply part by part; `operators.py` defines them.

    Attributes:
      base: w.
      scales: see `Delta`; stored without the 1, so that a modulation far below the
        resolution of bfloat16 survives.
      terms: see `Delta`.
      gains: arrays by which the model itself multiplies w, such as the scale of a
        quantised weight. Unlike scales they are stored whole, since they may be tiny.
      segments: `[T]` integers, the segment of each token; None if all parts are those
        of one user.
    """

    base: jax.Array
    scales: tuple[jax.Array, ...] = ()
    terms: tuple[Term, ...] = ()
    gains: tuple[jax.Array, ...] = ()
    segments: jax.Array | None = None

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _forgotten
    __truediv__ = __rtruediv__ = __pow__ = __rpow__ = __neg__ = __abs__ = _forgotten
    __lt__ = __le__ = __gt__ = __ge__ = __iter__ = __array__ = _forgotten

    def __repr__(self) -> str:
        size = "x".join(map(str, self.shape)) or "scalar"
        return f"Conditioned({size} {self.dtype.name}; {_FORGOTTEN})"

    def __getattr__(self, name: str):
        if name.startswith("__"):  # Asked of any object, for example by `copy`.
            raise AttributeError(name)
        raise AttributeError(f"no attribute {name!r}: {_FORGOTTEN}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of w_z."""
        return self.base.shape

    @property
    def dtype(self) -> Any:
        """Dtype of w_z: that of w, or what the model casts an integer w to."""
        if _is_inexact(self.base) or not self.gains:
            return self.base.dtype
        return jnp.result_type(*self.gains)

    @property
    def is_integer(self) -> bool:
        """Whether w is of integers or 8-bit floats that the model has not cast yet."""
        return not (_is_inexact(self.base) or self.gains)

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
        nothing. A parameter whose parts differ by segment cannot be built at all.
        """
        if self.segments is not None:
            return True
        alone = [term[0].size // term[0].shape[-1] for term in self.terms if _one(term)]
        return self.size > max([1, *(scale.size for scale in self.scales), *alone])

    def materialize(self, dtype: Any = None) -> jax.Array:
        """Builds w_z, computed in float32 or wider.

        Args:
          dtype: dtype of the result; `self.dtype` if None.

        Raises:
          NotSeparable: if parts differ by segment, or an integer w has no `dtype`.
        """
        if self.segments is not None:
            raise NotSeparable("each segment has its own")
        if self.is_integer and dtype is None:
            raise NotSeparable("its integers were not cast to floats")
        own = jnp.float32 if self.is_integer else self.dtype  # Also of 4-bit integers.
        wide = jnp.promote_types(own, jnp.float32)
        w = self.base.astype(wide)
        for gain in self.gains:
            w = w * gain
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

        def apply(part):
            if part.ndim == self.ndim:
                return fn(part)
            # The rank and the segments are left alone.
            return jax.vmap(fn, -1, -1)(part) if one_more(part) else two_more(part)

        def one_more(part):
            return part.ndim == self.ndim + 1

        two_more = jax.vmap(jax.vmap(fn, -1, -1), -1, -1)
        return dataclasses.replace(
            self,
            base=fn(self.base) if base is None else base,
            scales=tuple(map(apply, self.scales)),
            terms=tuple(tuple(map(apply, term)) for term in self.terms),
            gains=tuple(map(fn, self.gains)),
        )

    def astype(self, dtype: Any) -> "Conditioned":
        """Casts w to a floating dtype; modulations keep theirs, and so do integers."""
        if _is_inexact(self.base):
            return dataclasses.replace(self, base=self.base.astype(dtype))
        # An array of the base's size is not made: products take integers as they are.
        one = jnp.ones((1,) * self.ndim, dtype)
        gains = tuple(gain.astype(dtype) for gain in self.gains)
        return dataclasses.replace(self, gains=gains or (one,))

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


def _is_inexact(x: jax.Array) -> bool:
    """Whether x is computed with; 8-bit floats are stored and cast, as integers."""
    return jnp.issubdtype(x.dtype, jnp.inexact) and x.dtype.itemsize > 1


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
        # `0 * s` has the integer type of s, and all have to have one type.
        start = [0 * s if b else s for b, s in zip(broadcast, starts, strict=True)]
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


def broadcast_to(leaf: Conditioned, shape: Sequence[int]) -> Conditioned:
    """Broadcasts axes of size 1, as `jnp.broadcast_to` of as many axes."""
    if leaf.shape == tuple(shape):
        return leaf
    return broadcast_in_dim(leaf, shape, range(leaf.ndim))


def build_at_tokens(leaf: Conditioned) -> jax.Array:
    """Builds an activation `[T, ...]` from a parameter that differs by segment.

    Args:
      leaf: the parameter, whose first axis is of T tokens or of size 1; each token gets
        the modulations of its segment.
    """
    tokens = leaf.segments.shape[0]

    def at(part, ndim):
        if part.ndim == ndim:
            return part
        rows = jnp.arange(tokens) if part.shape[0] > 1 else jnp.zeros(tokens, int)
        return part[(rows, ..., leaf.segments)]

    return Conditioned(
        jnp.broadcast_to(leaf.base, (tokens, *leaf.shape[1:])),
        tuple(at(scale, leaf.ndim) for scale in leaf.scales),
        tuple(tuple(at(f, leaf.ndim + 1) for f in term) for term in leaf.terms),
        leaf.gains,
    ).materialize()


def multiply(leaf: Conditioned, x: jax.Array, *, shared: bool) -> Conditioned:
    """Multiplies w_z by a scalar or an array with w's axes, of size 1 where broadcast.

    Args:
      leaf: the parameter.
      x: the multiplier, such as a number, a mask, or the scale of a quantised weight.
      shared: whether all examples share x; only then may w itself be multiplied.

    Raises:
      NotSeparable: if x depends on the example and is as large as w_z.
    """
    x = x.reshape((1,) * leaf.ndim) if x.ndim == 0 else x
    along = [a for a, size in enumerate(x.shape) if size > 1]
    narrow = x.size < leaf.size
    if shared and len(along) > 1:
        # Like a mask: a scale of groups may have these axes merged next.
        x = jnp.broadcast_to(x, leaf.shape)
    terms = tuple((*term, x[..., None]) for term in leaf.terms)
    if narrow and (len(along) < 2 or not shared):
        return dataclasses.replace(leaf, gains=(*leaf.gains, x), terms=terms)
    if not shared:
        raise NotSeparable("it is multiplied by an array of an example")
    base = leaf.base.astype(leaf.dtype) * x
    return dataclasses.replace(leaf, base=base, terms=terms)


def add(leaf: Conditioned, x: jax.Array, *, shared: bool) -> Conditioned:
    """Adds a scalar or an array with w's axes, of size 1 where broadcast, to w_z.

    Args:
      leaf: the parameter.
      x: what is added.
      shared: whether all examples share x; only then may it be added to w itself.

    Raises:
      NotSeparable: if x depends on the example and is as large as w_z.
    """
    x = x.reshape((1,) * leaf.ndim) if x.ndim == 0 else x
    if shared and not (leaf.scales or leaf.gains or leaf.segments is not None):
        return dataclasses.replace(leaf, base=leaf.base + x)
    if x.size < leaf.size:
        return dataclasses.replace(leaf, terms=(*leaf.terms, (x[..., None],)))
    if not shared:
        raise NotSeparable("data of an example are added to it")
    # A term of one factor is a shift of each user (`is_compact`); this one is shared.
    one = jnp.ones((1,) * (leaf.ndim + 1), x.dtype)
    return dataclasses.replace(leaf, terms=(*leaf.terms, (x[..., None], one)))


def pad(leaf: Conditioned, config: Sequence[tuple[int, int, int]]) -> Conditioned:
    """Pads w_z with zeros, as `lax.pad` does; `config` is its `padding_config`."""
    config = [tuple(map(int, c)) for c in config]
    padded = [a for a, c in enumerate(config) if c != (0, 0, 0)]

    def part(x):
        own = [
            c if x.shape[a] == leaf.shape[a] else (0, 0, 0)
            for a, c in enumerate(config)
        ]
        return lax.pad(x, jnp.zeros((), x.dtype), own)

    # Where w is padded, one factor of each term has to be zero.
    terms = tuple(_varying_along(leaf, term, padded) for term in leaf.terms)
    return dataclasses.replace(leaf, terms=terms).map_parts(part)


def _varying_along(leaf: Conditioned, term: Term, axes: Sequence[int]) -> Term:
    """Adds a factor of ones along each axis along which no factor of a term varies."""
    for axis in axes:
        if not any(factor.shape[axis] == leaf.shape[axis] for factor in term):
            sizes = [n if a == axis else 1 for a, n in enumerate(leaf.shape)]
            term = (*term, jnp.ones((*sizes, 1), leaf.dtype))
    return term


def stack(leaves: Sequence[Conditioned], axis: int) -> Conditioned:
    """Stacks parameters of one shape along a new axis, as models stack layers."""
    shape = list(leaves[0].shape)
    shape.insert(axis, 1)
    kept = [a for a in range(len(shape)) if a != axis]
    return concatenate([broadcast_in_dim(leaf, shape, kept) for leaf in leaves], axis)


def concatenate(leaves: Sequence[Conditioned], axis: int) -> Conditioned:
    """Concatenates parameters along an axis, as models do with attention heads.

    Scales that vary along the axis are concatenated; so is each factor of a term if
    every parameter is one entry long there, as layers that are stacked are. Other
    terms are padded with zeros to the new shape.

    Raises:
      NotSeparable: if a scale varies along other axes but not along this one, since
        each block would need a scale of its own there.
    """
    blocks = [leaf.shape[axis] for leaf in leaves]
    segments = [leaf.segments for leaf in leaves if leaf.segments is not None]
    scales = _join_gains([leaf.scales for leaf in leaves], leaves, axis, 0)
    gains = _join_gains([leaf.gains for leaf in leaves], leaves, axis, 1)
    if all(size == 1 for size in blocks):
        terms = _stacked_terms([leaf.terms for leaf in leaves], axis)
    else:
        terms = _padded_terms(leaves, axis)
    return Conditioned(
        jnp.concatenate([leaf.base for leaf in leaves], axis),
        *(scales, terms, gains),
        segments=segments[0] if segments else None,
    )


def _join_gains(of_leaves, leaves, axis: int, neutral: int) -> tuple[jax.Array, ...]:
    """Joins scales, whose neutral value is 0, or gains, whose neutral value is 1."""
    patterns: dict[tuple, list] = {}
    for n, (parts, leaf) in enumerate(zip(of_leaves, leaves, strict=True)):
        for part in parts:
            sizes = part.shape[: leaf.ndim]
            if sizes[axis] < leaf.shape[axis] and len(leaves) > 1:
                if max(sizes) > 1:
                    raise NotSeparable(f"a scale does not vary along axis {axis}")
                part = jnp.repeat(part, leaf.shape[axis], axis)
            pattern = tuple(s for a, s in enumerate(part.shape) if a != axis)
            found = patterns.setdefault(pattern, [None] * len(leaves))
            if found[n] is not None:
                one = 1 - neutral  # A scale is stored without the 1.
                part = (found[n] + one) * (part + one) - one
            found[n] = part
    joined = []
    for found in patterns.values():
        some = next(part for part in found if part is not None)
        filled = [
            jnp.full(
                (*some.shape[:axis], leaf.shape[axis], *some.shape[axis + 1 :]),
                *(neutral, some.dtype),
            )
            if part is None
            else part
            for part, leaf in zip(found, leaves, strict=True)
        ]
        joined.append(jnp.concatenate(filled, axis))
    return tuple(joined)


def _stacked_terms(of_leaves: Sequence[tuple[Term, ...]], axis: int):
    """Concatenates the factors of terms that are alike in all parameters."""
    alike: dict[tuple, list] = {}
    for n, terms in enumerate(of_leaves):
        seen: dict[tuple, int] = {}
        for term in terms:
            shapes = tuple(factor.shape for factor in term)
            seen[shapes] = seen.get(shapes, 0) + 1
            key = shapes, seen[shapes]
            alike.setdefault(key, [None] * len(of_leaves))[n] = term
    joined = []
    for found in alike.values():
        some = next(term for term in found if term is not None)
        zeros = tuple(map(jnp.zeros_like, some))
        filled = [zeros if term is None else term for term in found]
        factors = zip(*filled, strict=True)
        joined.append(tuple(jnp.concatenate(f, axis) for f in factors))
    return tuple(joined)


def _padded_terms(leaves: Sequence[Conditioned], axis: int) -> tuple[Term, ...]:
    """Pads terms with zeros to the joined shape; joins the ranks of those alike."""
    terms, before, total = [], 0, sum(leaf.shape[axis] for leaf in leaves)
    for leaf in leaves:
        size = leaf.shape[axis]
        after = total - before - size
        config = [(0, 0, 0)] * leaf.ndim
        config[axis] = (before, after, 0)
        terms += pad(leaf, config).terms
        before += size
    alike: dict[tuple, list[Term]] = {}
    for term in terms:
        if len({factor.shape[leaves[0].ndim] for factor in term}) > 1:
            rank = max(factor.shape[leaves[0].ndim] for factor in term)
            term = tuple(_of_rank(factor, rank, leaves[0].ndim) for factor in term)
        shapes = tuple(_but(factor.shape, leaves[0].ndim) for factor in term)
        alike.setdefault(shapes, []).append(term)
    return tuple(
        tuple(jnp.concatenate(f, leaves[0].ndim) for f in zip(*found, strict=True))
        for found in alike.values()
    )


def _of_rank(factor: jax.Array, rank: int, axis: int) -> jax.Array:
    """Repeats a factor that is the same along the rank."""
    sizes = [rank if a == axis else n for a, n in enumerate(factor.shape)]
    return jnp.broadcast_to(factor, sizes)


def _but(sizes: Sequence[int], axis: int) -> tuple[int, ...]:
    return (*sizes[:axis], *sizes[axis + 1 :])


def scannable(leaf: Conditioned) -> Conditioned:
    """Broadcasts every part along w's leading axis, which `lax.scan` slices."""

    def part(x):
        return jnp.broadcast_to(x, (leaf.shape[0], *x.shape[1:]))

    segments = leaf.segments
    if segments is not None:  # They are sliced as well, so each layer gets them.
        segments = jnp.broadcast_to(segments, (leaf.shape[0], *segments.shape))
    return dataclasses.replace(leaf.map_parts(part), segments=segments)
