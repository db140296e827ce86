"""Computes products with a conditioned parameter part by part.

`x @ (w * (1 + d) + sum_r a_r s_r b_r)` runs as `(x @ w) * (1 + d) + ((x @ a) * s) @ b`:
one product with the shared w, and per-user terms no larger than activations. Each
function raises `NotSeparable` if no such order exists.

If x and w have a low precision, products are accumulated and modulated in float32 and
cast last, so that a modulation below the resolution of bfloat16 is not lost.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import mixed_scales
from .leaf import Conditioned, NotSeparable, Term, squeezed

Dimensions = tuple[tuple[Sequence[int], Sequence[int]], ...]


def dot_general(
    lhs: jax.Array | Conditioned,
    rhs: jax.Array | Conditioned,
    dimension_numbers: Dimensions,
    *,
    precision: Any = None,
    preferred_element_type: Any = None,
    **kwargs: Any,
) -> jax.Array:
    """Computes `lax.dot_general` of one array and one conditioned parameter.

    Raises:
      NotSeparable: for a scale that varies both along contracted and along other axes
        of the parameter, if `mixed_scales.multiply` refuses it.
    """
    on_left = isinstance(lhs, Conditioned)
    leaf, x = (lhs, rhs) if on_left else (rhs, lhs)
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = dimension_numbers
    contract = (lhs_contract, rhs_contract) if on_left else (rhs_contract, lhs_contract)
    batch = (lhs_batch, rhs_batch) if on_left else (rhs_batch, lhs_batch)
    out_dtype = preferred_element_type or jnp.promote_types(x.dtype, leaf.dtype)
    wide = jnp.promote_types(out_dtype, jnp.float32)
    options = {"precision": precision, "preferred_element_type": wide, **kwargs}

    axes = mixed_scales.find(leaf, contract, batch)
    if axes:

        def by_batches(x, *pairs):
            if on_left:
                return dot_general(leaf, x, pairs, **options)
            return dot_general(x, leaf, tuple(p[::-1] for p in pairs), **options)

        out = mixed_scales.multiply(
            by_batches, leaf, x, *axes, contract, batch, on_left
        )
        return out.astype(out_dtype)

    # Every axis gets a label; axes of w and x that meet get the same one.
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

    def product(y):
        operands = (leaf.base, y) if on_left else (y, leaf.base)
        return _wide_dot(*operands, dimension_numbers, out_dtype, options)

    before, after = [], []
    for scale in leaf.scales:
        axes = _varying(scale, labels)
        if axes.isdisjoint(free_w):
            before.append(_aligned(scale, labels, x_labels))
        else:
            after.append(_aligned(scale, labels, out_labels))
    out = _scaled_product(product, x, before)
    for scale in after:
        out = out * (1 + scale)
    for term in leaf.terms:
        sides = _sides(term, labels, contracted, set(free_w) | set(batched))
        out = out + _term_product(x, x_labels, sides, labels, out_labels, wide)
    return out.astype(out_dtype)


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


def _sides(term: Term, labels, contracted, others) -> tuple[list, list, list]:
    """Sorts a term's factors: those that vary along contracted axes, neither, others.

    Returns:
      (factors along contracted axes, factors along the rank alone, factors along other
      axes).
    """
    meeting, alone, other = [], [], []
    for factor in term:
        axes = _varying(factor, labels)
        if axes & contracted:
            meeting.append(factor)
        elif axes & others:
            other.append(factor)
        else:
            alone.append(factor)
    return meeting, alone, other


def _term_product(x, x_labels, sides, labels, out_labels, wide) -> jax.Array:
    """Multiplies x by one term: contracted factors first, then the rank, then the rest.

    In this order a per-user factor only meets arrays that have x's free axes and the
    rank; einsum's own order could build a per-user matrix first.
    """
    rank = len(x_labels) + len(labels)
    labels = [*labels, rank]
    meeting, alone, other = sides
    if meeting:
        factor, axes = squeezed(math.prod(meeting[1:], start=meeting[0]), labels)
        kept = [n for n in out_labels if n in x_labels or n in axes]
        if rank in axes:
            kept, axes = [*kept, rank], [rank, *axes[:-1]]
            factor = _rank_first(factor)
        partial = _einsum(x, x_labels, factor, axes, kept, wide)
    else:
        kept = [n for n in out_labels if n in x_labels]
        gone = tuple(i for i, n in enumerate(x_labels) if n not in kept)
        partial = x.sum(gone, dtype=wide).transpose(
            [sorted(kept).index(n) for n in kept]
        )
    for factor in alone:
        if rank in kept or factor.shape[-1] == 1:
            partial = partial * factor.reshape(-1)
        else:
            other = [factor, *other]
    if other:
        factor, axes = squeezed(math.prod(other[1:], start=other[0]), labels)
        out = [n for n in out_labels if n in kept or n in axes]
        partial = _einsum(partial.astype(x.dtype), kept, factor, axes, out, wide)
        kept = out
    elif rank in kept:
        partial = partial.sum(kept.index(rank))
        kept = [n for n in kept if n != rank]
    sizes = dict(zip(kept, partial.shape, strict=True))
    return partial.reshape([sizes.get(n, 1) for n in out_labels])


def _rank_first(factor: jax.Array) -> jax.Array:
    """Moves the rank's axis to the front, so that the factor's gradient is `g.T @ x`.

    With the rank last, the gradient has the same numbers, but XLA rewrites
    transpose(g.T @ x) as x.T @ g, which transposes the activations first: on a CPU more
    than ten times as slow. The barrier hides the factor's own layout from that rewrite.
    """
    return lax.optimization_barrier(jnp.moveaxis(factor, -1, 0))


def _einsum(x, x_labels, factor, labels, out, wide) -> jax.Array:
    """Computes a product in x's dtype, accumulated in `wide`."""
    return jnp.einsum(
        *(x, x_labels, factor.astype(x.dtype), labels, out),
        preferred_element_type=wide,
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
        once, for a factor along inputs and outputs, and for any term if features or
        batches are grouped.
    """
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

    before, after = [], []
    for scale in leaf.scales:
        axes = _varying(scale, range(leaf.ndim))
        if axes == {in_axis}:
            # Each group of features has its own inputs, scaled alike.
            vector, channel = jnp.tile(scale.ravel(), feature_group_count), in_channel
            before.append(jnp.expand_dims(vector, _all_but(channel, lhs.ndim)))
        elif axes <= {out_axis}:
            after.append(
                jnp.expand_dims(scale.ravel(), _all_but(out_channel, lhs.ndim))
            )
        else:
            raise NotSeparable("a scale varies along the window, or inputs and outputs")
    out = _scaled_product(lambda x: convolve(x, leaf.base), lhs, before)
    for scale in after:
        out = out * (1 + scale)
    if leaf.terms and max(feature_group_count, batch_group_count) > 1:
        raise NotSeparable("a term with grouped features or batches")
    for term in leaf.terms:
        inputs = set(range(leaf.ndim)) - {out_axis}
        meeting, alone, other = _sides(term, range(leaf.ndim), inputs, {out_axis})
        if any(factor.shape[out_axis] > 1 for factor in meeting):
            raise NotSeparable("a factor varies along inputs and outputs")
        rank = max(factor.shape[-1] for factor in term)
        sizes = [n for axis, n in enumerate(leaf.shape) if axis != out_axis]
        narrow = [jnp.squeeze(factor, out_axis) for factor in meeting]
        kernel = jnp.broadcast_to(math.prod(narrow, start=1.0), (*sizes, rank))
        partial = convolve(lhs, jnp.moveaxis(kernel, -1, out_axis).astype(lhs.dtype))
        partial = jnp.moveaxis(partial, out_channel, -1)
        partial = math.prod((factor.ravel() for factor in alone), start=partial)
        tails = [factor.reshape(-1, factor.shape[-1]) for factor in other]
        tail = jnp.broadcast_to(
            math.prod(tails, start=1.0), (tails[0].shape[0] if tails else 1, rank)
        )
        outer = jnp.matmul(
            partial.astype(lhs.dtype),
            tail.T.astype(lhs.dtype),
            preferred_element_type=wide,
        )
        out = out + jnp.moveaxis(outer, -1, out_channel)
    return out.astype(out_dtype)


def _all_but(axis: int, ndim: int) -> tuple[int, ...]:
    return tuple(i for i in range(ndim) if i != axis)


def gather(
    leaf: Conditioned,
    indices: jax.Array,
    *,
    dimension_numbers: lax.GatherDimensionNumbers,
    slice_sizes: Sequence[int],
    mode: Any = None,
    fill_value: Any = None,
    **kwargs: Any,
) -> Conditioned:
    """Computes `lax.gather` from a conditioned parameter; the result is lazy, too.

    Raises:
      NotSeparable: if entries out of bounds are filled with another number than NaN.
    """
    start_map = dimension_numbers.start_index_map
    if lax.GatherScatterMode.from_any(mode) == lax.GatherScatterMode.FILL_OR_DROP:
        # Each part is filled: NaN times or plus anything is NaN, as of no other number.
        if not (fill_value is None or np.isnan(fill_value)):
            raise NotSeparable(f"entries out of bounds become {fill_value}")

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
            dimension_numbers,
            tuple(map(min, slice_sizes, grown)),
            mode=mode,
            fill_value=fill_value,
            **kwargs,
        )

    return leaf.map_parts(part)
