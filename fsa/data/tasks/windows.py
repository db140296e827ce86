"""Draws from users' lists through a window that the batch's longest list just fits.

An array on a device has one shape for all users. Were it as wide as the longest list of
all users, then one user with very many choices would slow down every step. So a program
may hold a draw twice, for a narrow window and for the widest, and take the narrow one
for batches that fit it. Both must draw the same.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def widths(lengths: np.ndarray, together: int) -> tuple[int, ...]:
    """Chooses the widths of windows: that of the longest list, and perhaps another.

    A narrower window comes first where it at least halves the expected width.

    Args:
      lengths: `[users]`, of the lists of the users who are drawn.
      together: number of users of a batch, which needs the width of its longest list.
    """
    sizes, counts = np.unique(lengths, return_counts=True)
    if not len(sizes):
        return (1,)
    longest = max(int(sizes[-1]), 1)
    # The probability that every user of a batch fits.
    fits = (np.cumsum(counts) / counts.sum()) ** together
    expected = fits * sizes + (1 - fits) * longest
    best = int(np.argmin(expected))
    if expected[best] > longest / 2:
        return (longest,)
    return max(int(sizes[best]), 1), longest


def through(
    draw: Callable[..., Any], lengths: jax.Array, widths: tuple[int, ...], *args: Any
) -> Any:
    """Calls `draw(width, *args)` with a width that fits; under `jax.vmap` as well.

    A batch has one width, which is that of its longest list.

    Args:
      draw: its results do not depend on `width`, as long as that fits.
      lengths: int scalar, the length of the list that is drawn from.
      widths: ascending; the last fits all lists.
      *args: arrays, since `draw` must not refer to traced values otherwise.
    """
    if len(widths) == 1:
        return draw(widths[0], *args)

    def for_all(draws: Callable[..., Any]) -> Callable[..., Any]:
        @jax.custom_batching.custom_vmap
        def run(lengths, *args):
            fitting = jnp.searchsorted(jnp.array(widths), jnp.max(lengths))
            branches = [functools.partial(draws, width) for width in widths]
            return jax.lax.switch(fitting, branches, *args)

        @run.def_vmap
        def _(axis_size, batched, lengths, *args):
            axes = jax.tree.map(lambda split: 0 if split else None, batched[1:])

            def many(width, *args):
                mapped = jax.vmap(
                    functools.partial(draws, width), tuple(axes), axis_size=axis_size
                )
                return mapped(*args)

            out = for_all(many)(lengths, *args)
            return out, jax.tree.map(lambda _: True, out)

        return run

    return for_all(draw)(lengths, *args)
