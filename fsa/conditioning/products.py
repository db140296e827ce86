"""Computes products with a conditioned parameter part by part.

`x @ (w * (1 + d) + sum_r a_r s_r b_r)` runs as `(x @ w) * (1 + d) + ((x @ a) * s) @ b`:
one product with the shared w, and per-user terms no larger than activations. Each
function raises `NotSeparable` if no such order exists.

If x and w have a low precision, products are accumulated and modulated in float32 and
cast last, so that a modulation below the resolution of bfloat16 is not lost.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import compat, mixed_scales
from .leaf import (
    Conditioned,
    NotSeparable,
    Term,
    add,
    concatenate,
    multiply,
    squeezed,
)
from .rows_dot import rows_dot

Dimensions = tuple[tuple[Sequence[int], Sequence[int]], ...]

# Parameters are joined if their ranks, summed, are at most this part of the inputs: the
# product with the joined factors then costs at most this part of that with w.
MOST_OF_ZEROS = 4


def dot_general(
    lhs: jax.Array | Conditioned,
    rhs: jax.Array | Conditioned,
    dimension_numbers: Dimensions,
    *,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
    multiply_base: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    **kwargs: Any,
) -> jax.Array:
    """Computes `lax.dot_general` of one array and one conditioned parameter.

    Args:
      lhs: left operand.
      rhs: right operand.
      dimension_numbers: as for `lax.dot_general`, like the rest.
      precision: see there.
      preferred_element_type: see there.
      out_sharding: see there.
      multiply_base: computes the product with w itself, for x on the left.
      **kwargs: see there.

    Raises:
      NotSeparable: for a scale that varies both along contracted and along other axes
        of the parameter, if `mixed_scales.multiply` refuses it; for integers that were
        not cast to floats, unless the product is of floats; and for segments if x's
        first axis is not that of their tokens.
    """
    on_left = isinstance(lhs, Conditioned)
    if on_left and out_sharding is None and _has_rows(rhs, dimension_numbers):
        swapped = tuple((b, a) for a, b in dimension_numbers)
        options = {"precision": precision, **kwargs}
        options["preferred_element_type"] = preferred_element_type
        out = dot_general(rhs, lhs, swapped, **options)
        return _parameter_first(out, lhs.ndim, dimension_numbers)
    leaf, x = (lhs, rhs) if on_left else (rhs, lhs)
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = dimension_numbers
    contract = (lhs_contract, rhs_contract) if on_left else (rhs_contract, lhs_contract)
    batch = (lhs_batch, rhs_batch) if on_left else (rhs_batch, lhs_batch)
    own = x.dtype if leaf.is_integer else leaf.dtype
    out_dtype = preferred_element_type or jnp.promote_types(x.dtype, own)
    if not jnp.issubdtype(out_dtype, jnp.inexact):
        raise NotSeparable("the product is of integers")
    wide = jnp.promote_types(out_dtype, jnp.float32)
    options = {"precision": precision, "preferred_element_type": wide, **kwargs}
    if out_sharding is not None:  # Of a mesh with explicit axes.
        options["out_sharding"] = out_sharding

    axes = mixed_scales.find(leaf, contract, batch)
    if axes and multiply_base is not None:
        raise NotSeparable("a scale varies along contracted and other axes")
    if axes:

        def by_batches(x, *pairs):
            if on_left:
                return dot_general(leaf, x, pairs, **options)
            return dot_general(x, leaf, tuple(p[::-1] for p in pairs), **options)

        out = mixed_scales.multiply(
            by_batches, leaf, x, *axes, contract, batch, on_left
        )
        return out.astype(out_dtype)

    # Every axis gets a label; axes of w and x that meet get the same one. The labels
    # of the rank and of tokens follow those of w, as those axes follow w's.
    x_labels = list(range(x.ndim))
    labels = [x.ndim + i for i in range(leaf.ndim)]
    for pairs in (contract, batch):
        for i, j in zip(*pairs, strict=True):
            labels[i] = x_labels[j]
    contracted = {x_labels[j] for j in contract[1]}
    batched = [x_labels[j] for j in batch[1]]
    free_x = [n for n in x_labels if n not in contracted and n not in batched]
    free_w = [n for n in labels if n not in contracted and n not in batched]
    out_labels = batched + (free_w + free_x if on_left else free_x + free_w)
    leaf, token = _at_tokens(leaf, x, free_x)

    def product(y):
        if multiply_base is not None:
            return multiply_base(y, leaf.base)
        operands = (leaf.base, y) if on_left else (y, leaf.base)
        return _wide_dot(*operands, dimension_numbers, out_dtype, options)

    sides = [], [], [], []
    for n, parts in enumerate((leaf.gains, leaf.scales)):
        for part in parts:
            own = [*labels, token]
            follows = not _varying(part, own).isdisjoint(free_w)
            to = out_labels if follows else x_labels
            sides[2 * n + follows].append(_aligned(part, own, to))
    gains_before, gains_after, before, after = sides
    x_gained = _times(x, gains_before).astype(x.dtype)
    out = _times(_scaled_product(product, x_gained, before), gains_after)
    for scale in after:
        out = out * (1 + scale)
    sharding = _Sharding(out_labels, out_sharding)
    # Where the rank's axis comes: the term is then laid out as the product with w.
    place = len(batched) if on_left else None
    roles = labels, token, contracted, set(free_w) | set(batched), place
    for term in leaf.terms:
        out = out + _term_product(x, x_labels, term, roles, out_labels, wide, sharding)
    return out.astype(out_dtype)


def _has_rows(x: jax.Array, dimension_numbers: Dimensions) -> bool:
    """Whether an array on the right is contracted along its last axes.

    If so, as in `w @ x` mapped over tokens, the product is computed with the array on
    the left: then activations need no second layout, neither here nor for gradients of
    the low rank.
    """
    (_, contract), (_, batch) = dimension_numbers
    rest = [i for i in range(x.ndim) if i not in contract and i not in batch]
    return max(rest, default=-1) < min(contract, default=x.ndim)


def _parameter_first(out, ndim: int, dimension_numbers: Dimensions) -> jax.Array:
    """Moves the parameter's axes in front of those of the array."""
    (contract, _), (batch, _) = dimension_numbers
    own = ndim - len(contract) - len(batch)
    start = len(batch)
    return jnp.moveaxis(out, range(out.ndim - own, out.ndim), range(start, start + own))


def joined_outputs(leaves, dimension_numbers, on_left) -> Conditioned | None:
    """Joins parameters of which products of one array are taken, along their outputs.

    Args:
      leaves: the parameters, which meet the array along the same axes.
      dimension_numbers: of each product.
      on_left: whether the parameter is the left operand.

    Returns:
      None if one product with the joined parameter would cost more, or none can be.
    """
    contract, batch = (pair[0 if on_left else 1] for pair in dimension_numbers)
    ndim, dtype = leaves[0].ndim, leaves[0].dtype
    free = [a for a in range(ndim) if a not in (*contract, *batch)]
    same = all(leaf.ndim == ndim and leaf.dtype == dtype for leaf in leaves)
    if len(free) != 1 or not same or any(map(_stays_alone, leaves)):
        return None
    # The joined low rank has zeros outside of the blocks of each parameter.
    rank = sum(f.shape[ndim] for leaf in leaves for t in leaf.terms for f in t[:1])
    if MOST_OF_ZEROS * rank > math.prod(leaves[0].shape[a] for a in contract):
        return None
    try:
        return concatenate(leaves, free[0])
    except NotSeparable:
        return None


def _stays_alone(leaf: Conditioned) -> bool:
    return leaf.is_integer or compat.is_sharded(leaf.base)


def output_axis(dimension_numbers: Dimensions, on_left: bool) -> int:
    """Returns the axis of a product's result that is a parameter's one free axis."""
    return len(dimension_numbers[1][0]) if on_left else -1


def _at_tokens(leaf: Conditioned, x: jax.Array, free: Sequence[int]):
    """Gives each token of x the parts of its segment.

    Returns:
      (the parameter, whose parts now have an axis of tokens in place of segments; its
      label, which is that of x's first axis).
    """
    if leaf.segments is None:
        return leaf, -1
    if 0 not in free or x.shape[0] != leaf.segments.shape[0]:
        raise NotSeparable(
            "it differs by segment, so the first axis of what it is multiplied with "
            f"has to be the {leaf.segments.shape[0]} tokens"
        )
    return by_token(leaf), 0


def by_token(leaf: Conditioned) -> Conditioned:
    """Indexes the parts that differ by segment; their last axis is then of tokens."""

    def scale_at(part):
        return part if part.ndim == leaf.ndim else part[..., leaf.segments]

    def factor_at(part):
        return part if part.ndim == leaf.ndim + 1 else part[..., leaf.segments]

    return dataclasses.replace(
        leaf,
        scales=tuple(map(scale_at, leaf.scales)),
        terms=tuple(tuple(map(factor_at, term)) for term in leaf.terms),
        segments=None,
    )


def _times(x: jax.Array, gains: Sequence[jax.Array]) -> jax.Array:
    return math.prod(gains, start=x)


@dataclasses.dataclass(frozen=True)
class _Sharding:
    """The sharding that a product on a mesh with explicit axes should have."""

    labels: Sequence[int]
    wanted: Any

    def of(self, labels: Sequence[int]) -> dict:
        """Keywords for the product that has these labels; others are replicated."""
        if self.wanted is None:
            return {}
        spec = getattr(self.wanted, "spec", self.wanted)
        names = dict(zip(self.labels, spec, strict=False))
        spec = jax.sharding.PartitionSpec(*(names.get(n) for n in labels))
        if not isinstance(self.wanted, jax.sharding.PartitionSpec):
            spec = jax.sharding.NamedSharding(self.wanted.mesh, spec)
        return {"out_sharding": spec}


def _wide_dot(lhs, rhs, dimension_numbers, out_dtype, options) -> jax.Array:
    """Computes a product in float32 whose derivative is rounded to `out_dtype`.

    So the gradient of a large weight is computed, and summed over devices, in the
    precision of the weight, as it is without modulations.
    """
    if options["preferred_element_type"] == out_dtype:
        return lax.dot_general(lhs, rhs, dimension_numbers, **options)

    @jax.custom_jvp
    def dot(lhs, rhs):
        return lax.dot_general(lhs, rhs, dimension_numbers, **options)

    @dot.defjvp
    def derivative(primals, tangents):
        def rounded(lhs, rhs):
            own = {**options, "preferred_element_type": out_dtype}
            return lax.dot_general(lhs, rhs, dimension_numbers, **own)

        out = dot(*primals)
        _, tangent = jax.jvp(rounded, primals, tangents)
        return out, tangent.astype(out.dtype)

    return dot(lhs, rhs)


def _varying(part: jax.Array, labels: Sequence[int]) -> set[int]:
    # `strict` is false because factors have the rank after the axes of w.
    sizes = zip(labels, part.shape, strict=False)
    return {label for label, size in sizes if size > 1}


def _aligned(part: jax.Array, labels: Sequence[int], to: Sequence[int]) -> jax.Array:
    """Moves a part's axes to the order `to`; drops other axes, which have size 1."""
    array, kept = squeezed(part, labels)
    order = sorted(range(len(kept)), key=lambda i: to.index(kept[i]))
    sizes = {label: size for label, size in zip(kept, array.shape, strict=True)}
    return array.transpose(order).reshape([sizes.get(label, 1) for label in to])


def _scaled_product(product, x: jax.Array, scales: Sequence[jax.Array]) -> jax.Array:
    """Computes `product(x * prod(1 + scale))` without rounding the modulation away."""
    if not scales:
        return product(x)
    delta, *others = scales
    for scale in others:
        delta = delta + scale + delta * scale
    if jnp.promote_types(x.dtype, delta.dtype) == x.dtype:
        return product(x * (1 + delta))
    # In x's dtype, x * (1 + delta) would round delta away; x * delta keeps it.
    return product(x) + product((x * delta).astype(x.dtype))


def _term_product(
    x, x_labels, term: Term, roles, out_labels, wide, sharding
) -> jax.Array:
    """Multiplies x by one term: contracted factors first, then the rank, then the rest.

    In this order a per-user factor only meets arrays that have x's free axes and the
    rank; einsum's own order could build a per-user matrix first.
    """
    labels, token, contracted, others, place = roles
    rank = len(x_labels) + len(labels)
    sides = [], [], []
    for factor in term:
        array, axes = squeezed(factor, [*labels, rank, token])
        side = 0 if contracted & set(axes) else 2 if others & set(axes) else 1
        sides[side].append((array, axes))
    meeting, alone, other = sides
    partial, kept = _contracted(
        x, x_labels, meeting, (rank, place), out_labels, wide, sharding
    )
    for factor, axes in alone:
        if set(axes) <= set(kept):
            partial = partial * _aligned(factor, axes, kept)
        else:
            other = [(factor, axes), *other]
    if other:
        factor, axes = _joint(other)
        out = [n for n in out_labels if n in kept or n in axes]
        partial, factor = (y.astype(_operand(x)) for y in (partial, factor))
        joined = [n for n in (*kept, *axes) if n != rank]
        has_rank = kept[-1:] == [rank] and rank in axes
        if has_rank and out == joined and sharding.wanted is None:
            # Where the result has the axes of rows first, its gradient costs less so.
            factor = _rank_first(factor, axes.index(rank))
            partial = rows_dot(partial, factor, wide)
        else:
            operands = partial, kept, factor, axes, out, wide
            partial = _einsum(*operands, **sharding.of(out))
        kept = out
    elif rank in kept:
        partial = partial.sum(kept.index(rank))
        kept = [n for n in kept if n != rank]
    sizes = dict(zip(kept, partial.shape, strict=True))
    return partial.reshape([sizes.get(n, 1) for n in out_labels])


def _contracted(x, x_labels, meeting, rank_at, out_labels, wide, sharding):
    """Sums x times factors over the contracted axes; returns (array, its labels)."""
    rank, place = rank_at
    if not meeting:
        kept = [n for n in out_labels if n in x_labels]
        gone = tuple(i for i, n in enumerate(x_labels) if n not in kept)
        partial = x.sum(gone, dtype=wide)
        return partial.transpose([sorted(kept).index(n) for n in kept]), kept
    y, y_labels = x, x_labels
    sizes = {
        n: s for array, own in meeting for n, s in zip(own, array.shape, strict=True)
    }
    if math.prod(sizes.values()) <= max(array.size for array, _ in meeting):
        factor, axes = _joint(meeting)
    else:
        # A mask [in, out] and a factor [in, rank]: their product would be as large as
        # the weight, rank times, so the factor multiplies x.
        *slim, (factor, axes) = sorted(meeting, key=lambda pair: pair[0].size)
        for array, own in slim:
            union = [*y_labels, *(n for n in own if n not in y_labels)]
            y = _aligned(y, y_labels, union) * _aligned(array, own, union)
            y_labels = union
        y = y.astype(_operand(x))
    kept = [n for n in out_labels if n in y_labels or n in axes]
    if rank in axes:
        factor = _rank_first(factor, axes.index(rank))
        kept.insert(len(kept) if place is None else place, rank)
        axes = [rank, *(n for n in axes if n != rank)]
    elif rank in y_labels:
        kept = [*kept, rank]
    return _einsum(y, y_labels, factor, axes, kept, wide, **sharding.of(kept)), kept


def _joint(factors) -> tuple[jax.Array, list[int]]:
    """Multiplies factors `(array, labels)`, all axes of which are kept."""
    array, labels = factors[0]
    for other, own in factors[1:]:
        union = sorted({*labels, *own})
        array = _aligned(array, labels, union) * _aligned(other, own, union)
        labels = union
    return array, labels


def _operand(x: jax.Array) -> Any:
    """The dtype in which factors meet x."""
    inexact = jnp.issubdtype(x.dtype, jnp.inexact)
    return x.dtype if inexact else jnp.promote_types(x.dtype, jnp.float32)


def _rank_first(factor: jax.Array, axis: int) -> jax.Array:
    """Moves the rank's axis to the front, so that the factor's gradient is `g.T @ x`.

    With the rank last, the gradient has the same numbers, but XLA rewrites
    transpose(g.T @ x) as x.T @ g, which transposes the activations first: on a CPU more
    than ten times as slow. The barrier hides the factor's own layout from that rewrite.
    So it is for output factors, whose gradient is `rows.T @ g`, see `rows_dot.py`.
    """
    return lax.optimization_barrier(jnp.moveaxis(factor, axis, 0))


def _einsum(x, x_labels, factor, labels, out, wide, **sharding) -> jax.Array:
    """Computes a product in x's dtype, accumulated in `wide`."""
    dtype = _operand(x)
    return jnp.einsum(
        *(x.astype(dtype), x_labels, factor.astype(dtype), labels, out),
        preferred_element_type=wide,
        **sharding,
    )


def conv_general_dilated(
    lhs: jax.Array,
    leaf: Conditioned,
    *,
    dimension_numbers: lax.ConvDimensionNumbers,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    preferred_element_type: Any = None,
    **kwargs: Any,
) -> jax.Array:
    """Computes `lax.conv_general_dilated` with a conditioned kernel.

    Raises:
      NotSeparable: for a scale along the kernel's window or along inputs and outputs at
        once, for a factor along inputs and outputs, for any term if batches are
        grouped, and for segments.
    """
    if leaf.segments is not None or leaf.is_integer:
        raise NotSeparable("a convolution of segments, or of integers")
    if leaf.terms and batch_group_count > 1:
        raise NotSeparable("a term with grouped batches")
    out_axis, in_axis, *_ = dimension_numbers.rhs_spec
    in_channel = dimension_numbers.lhs_spec[1]
    out_channel = dimension_numbers.out_spec[1]
    out_dtype = preferred_element_type or jnp.promote_types(lhs.dtype, leaf.dtype)
    wide = jnp.promote_types(out_dtype, jnp.float32)

    def convolve(x, kernel):
        return lax.conv_general_dilated(
            x,
            kernel,
            dimension_numbers=dimension_numbers,
            feature_group_count=feature_group_count,
            batch_group_count=batch_group_count,
            preferred_element_type=wide,
            **kwargs,
        )

    def side(part):
        axes = _varying(part, range(leaf.ndim))
        if axes <= {out_axis}:
            channel = jnp.expand_dims(part.ravel(), _all_but(out_channel, lhs.ndim))
            return False, channel
        if axes == {in_axis}:
            # Each group of features has its own inputs, scaled alike.
            vector = jnp.tile(part.ravel(), feature_group_count)
            return True, jnp.expand_dims(vector, _all_but(in_channel, lhs.ndim))
        raise NotSeparable("a scale varies along the window, or inputs and outputs")

    gains, scales = [list(map(side, parts)) for parts in (leaf.gains, leaf.scales)]
    before, after = [[s for first, s in scales if first is b] for b in (True, False)]
    x = _times(lhs, [gain for first, gain in gains if first]).astype(lhs.dtype)
    base = leaf.base.astype(leaf.dtype)
    out = _scaled_product(lambda x: convolve(x, base), x, before)
    out = _times(out, [gain for first, gain in gains if not first])
    for scale in after:
        out = out * (1 + scale)
    for term in leaf.terms:
        narrow, tail = _conv_factors(leaf, term, out_axis)
        if feature_group_count > 1:
            tail = jnp.broadcast_to(tail, (leaf.shape[out_axis], tail.shape[1]))
            names, groups = dimension_numbers, feature_group_count
            options = {**kwargs, "preferred_element_type": wide}
            out = out + _grouped_term(
                lhs, narrow, tail, out_axis, names, groups, options
            )
            continue
        kernel = jnp.moveaxis(narrow, -1, out_axis)
        partial = jnp.moveaxis(convolve(lhs, kernel.astype(lhs.dtype)), out_channel, -1)
        outer = jnp.matmul(
            partial.astype(lhs.dtype),
            tail.T.astype(lhs.dtype),
            preferred_element_type=wide,
        )
        out = out + jnp.moveaxis(outer, -1, out_channel)
    return out.astype(out_dtype)


def _conv_factors(leaf: Conditioned, term: Term, out_axis: int):
    """Splits a term into a kernel of rank outputs and what makes outputs of them.

    Returns:
      (`[...inputs and window, R]`, `[outputs or 1, R]`).
    """
    inputs = [axis for axis in range(leaf.ndim) if axis != out_axis]
    meeting, others = [], []
    for factor in term:
        varies = _varying(factor, range(leaf.ndim))
        if varies.intersection(inputs):
            meeting.append(factor)
        else:
            others.append(factor.reshape(-1, factor.shape[-1]))
        if varies.intersection(inputs) and out_axis in varies:
            raise NotSeparable("a factor varies along inputs and outputs")
    rank = max(factor.shape[-1] for factor in term)
    sizes = [leaf.shape[axis] for axis in inputs]
    narrow = [jnp.squeeze(factor, out_axis) for factor in meeting]
    kernel = jnp.broadcast_to(math.prod(narrow, start=1.0), (*sizes, rank))
    tail = math.prod(others, start=jnp.ones((1, 1)))
    return kernel, jnp.broadcast_to(tail, (tail.shape[0], rank))


def _grouped_term(lhs, narrow, tail, out_axis, names, groups, options) -> jax.Array:
    """Computes a term of a convolution in groups: each group is one more example.

    A kernel for all groups, of which each would be alike, would be as large as w.
    """
    x = lhs.transpose(names.lhs_spec)  # [N, C, *space]
    n, channels, *space = x.shape
    x = x.reshape(n * groups, channels // groups, *space)
    kernel = jnp.moveaxis(narrow, -1, out_axis).transpose(names.rhs_spec)
    partial = lax.conv_general_dilated(x, kernel.astype(x.dtype), **options)
    partial = partial.reshape(n, groups, *partial.shape[1:])
    tail = tail.reshape(groups, -1, tail.shape[1])
    out = jnp.einsum("ngr...,gor->ngo...", partial, tail)
    out = out.reshape(n, -1, *out.shape[3:])
    order = [names.out_spec.index(axis) for axis in range(out.ndim)]
    return out.transpose(order)


def _all_but(axis: int, ndim: int) -> tuple[int, ...]:
    return tuple(i for i in range(ndim) if i != axis)


def gather(
    leaf: Conditioned,
    indices: jax.Array,
    *,
    shared: bool,
    dimension_numbers: lax.GatherDimensionNumbers,
    slice_sizes: Sequence[int],
    mode: Any = None,
    fill_value: Any = None,
    **kwargs: Any,
) -> Conditioned | jax.Array:
    """Computes `lax.gather` from a conditioned parameter; the result is lazy, too.

    Args:
      leaf: the parameter.
      indices: as for `lax.gather`.
      shared: whether all examples share the indices.
      dimension_numbers: as for `lax.gather`, like the rest.
      slice_sizes: see there.
      mode: see there.
      fill_value: see there. With another number than NaN, entries that an example looks
        up are an array, since they are activations.
      **kwargs: see there.
    """
    start_map = dimension_numbers.start_index_map
    own = {"dimension_numbers": dimension_numbers, **kwargs}
    mode = lax.GatherScatterMode.from_any(mode)
    if mode == lax.GatherScatterMode.FILL_OR_DROP:
        # Each part is filled: NaN times or plus anything is NaN, as of no other number.
        if not (fill_value is None or np.isnan(fill_value)):
            own |= {"slice_sizes": slice_sizes, "shared": shared}
            return _filled_gather(leaf, indices, fill_value, own)

    def part(x):
        narrow = [a < b for a, b in zip(x.shape, leaf.shape, strict=True)]
        grown = list(x.shape)
        for axis in dimension_numbers.operand_batching_dims:
            grown[axis] = leaf.shape[axis]
        kept = np.array([not narrow[axis] for axis in start_map])
        at = indices * kept.astype(indices.dtype)
        if not (kept.any() or dimension_numbers.operand_batching_dims):
            # This part is the same at every index, so it is read once.
            at = jnp.zeros((1,) * (indices.ndim - 1) + kept.shape, indices.dtype)
        return lax.gather(
            jnp.broadcast_to(x, grown),
            at,
            slice_sizes=tuple(map(min, slice_sizes, grown)),
            mode=mode,
            fill_value=fill_value,
            **own,
        )

    return leaf.map_parts(part)


def _filled_gather(leaf, indices, fill_value, options) -> Conditioned | jax.Array:
    """Fills entries out of bounds with a number: reads within, then masks."""
    inside = gather(leaf, indices, mode="clip", **options)
    names = options["dimension_numbers"]
    indexed = (*names.start_index_map, *names.operand_batching_dims)
    sizes = [n if a in indexed else 1 for a, n in enumerate(leaf.shape)]
    mask = lax.gather(
        jnp.ones(sizes, leaf.dtype),
        indices,
        names,
        tuple(map(min, options["slice_sizes"], sizes)),
        mode="fill",
        fill_value=0,
    )
    if not options["shared"]:
        return jnp.where(mask == 1, inside.materialize(), fill_value)
    masked = multiply(inside, mask, shared=True)
    if fill_value == 0:
        return masked
    return add(masked, (1 - mask) * fill_value, shared=True)
