"""Products with a scale that varies along contracted and along other axes at once.

`einsum("td,edf->etf", x, w)` with a scale `[e, d, 1]`, experts that read the same x,
has no factor that could be taken out of the sum over d, unless e is an axis of x too.
`einsum("etf,efd->td", h, w)` with a scale `[e, 1, d]` has none unless e is an axis of
the product, which is then summed over. Either way axes become batch axes.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from .leaf import Conditioned, NotSeparable

Pairs = tuple[Sequence[int], Sequence[int]]


def find(leaf: Conditioned, contract: Pairs, batch: Pairs):
    """(contracted axes, free axes) of the first such scale of a parameter, or None.

    Args:
      leaf: the parameter.
      contract: axes of the parameter that are contracted, and x's that they meet.
      batch: likewise.
    """
    for scale in leaf.scales:
        axes = {i for i, size in enumerate(scale.shape) if size > 1}
        met = sorted(axes & set(contract[0]))
        free = sorted(axes - set(contract[0]) - set(batch[0]))
        if met and free:
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
    """The product of x and a parameter with such a scale.

    Args:
      product: of `(x, contract, batch)`, as `lax.dot_general`.
      leaf: the parameter.
      x: the other operand.
      met: contracted axes along which the scale varies.
      free: the other axes along which it does.
      contract: see `find`.
      batch: see `find`.
      on_left: whether the parameter is the left operand.

    Raises:
      NotSeparable: where copies of x would be larger than the result, and parts of the
        result larger than x.
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
