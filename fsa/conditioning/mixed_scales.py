"""Products with a scale that varies along contracted and along other axes at once.

Two cases from mixtures of experts: in `einsum("td,edf->etf", x, w)` all experts e read
the same x, and a scale `[e, d, 1]` cannot be taken out of the sum over d unless x gets
an axis e as well. In `einsum("etf,efd->td", h, w)` a scale `[e, 1, d]` cannot be taken
out of the sum over e unless the product keeps the axis e, which is summed afterwards.
Either way an axis becomes a batch axis of the product.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from .leaf import Conditioned, NotSeparable

Pairs = tuple[Sequence[int], Sequence[int]]


def find(leaf: Conditioned, contract: Pairs, batch: Pairs):
    """Finds the first such scale, or gain, of a parameter.

    Args:
      leaf: the parameter.
      contract: contracted axes of the parameter, and the axes of x that they meet.
      batch: batch axes, likewise.

    Returns:
      (contracted axes, free axes) along which the scale varies, or None.

    Raises:
      NotSeparable: if the scale differs by segment.
    """
    for scale in (*leaf.gains, *leaf.scales):
        axes = {i for i, size in enumerate(scale.shape[: leaf.ndim]) if size > 1}
        met = sorted(axes & set(contract[0]))
        free = sorted(axes - set(contract[0]) - set(batch[0]))
        if met and free:
            if leaf.segments is not None:
                raise NotSeparable("a scale of each segment varies along both sides")
            return met, free
    return None


def multiply(
    product: Callable[[jax.Array, Pairs, Pairs], jax.Array],
    leaf: Conditioned,
    x: jax.Array,
    met: Sequence[int],
    free: Sequence[int],
    contract: Pairs,
    batch: Pairs,
    on_left: bool,
) -> jax.Array:
    """Multiplies x and a parameter with such a scale.

    Args:
      product: computes `lax.dot_general` from `(x, contract, batch)`.
      leaf: the parameter.
      x: the other operand.
      met: contracted axes along which the scale varies.
      free: free axes along which it varies.
      contract: see `find`.
      batch: see `find`.
      on_left: whether the parameter is the left operand.

    Raises:
      NotSeparable: if copies of x would be larger than the result, and a result that
        keeps the contracted axes larger than x.
    """

    def size(axes):
        return math.prod(leaf.shape[i] for i in axes)

    others = [i for i in range(leaf.ndim) if i not in (*contract[0], *batch[0])]
    start = len(batch[0])
    if size(others) >= size(contract[0]) * size(free):
        k = len(free)
        copies = jnp.broadcast_to(x, (*(leaf.shape[i] for i in free), *x.shape))
        out = product(
            copies,
            (contract[0], [j + k for j in contract[1]]),
            ([*batch[0], *free], [*(j + k for j in batch[1]), *range(k)]),
        )
        first = start if on_left else x.ndim - len(contract[1])
        places = [first + others.index(i) for i in free]
        return jnp.moveaxis(out, range(start, start + k), places)
    if size(contract[0]) >= size(others) * size(met):
        pairs = list(zip(*contract, strict=True))
        parts = [pair for pair in pairs if pair[0] in met]
        kept = [pair for pair in pairs if pair[0] not in met]
        out = product(x, _unzip(kept), _unzip([*zip(*batch, strict=True), *parts]))
        return out.sum(range(start, start + len(parts)))
    raise NotSeparable("a scale varies along contracted and other axes")


def _unzip(pairs: Sequence[tuple[int, int]]) -> Pairs:
    return [i for i, _ in pairs], [j for _, j in pairs]
