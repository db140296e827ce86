"""The order in which training users are visited."""

import numpy as np


def visited(rows: np.ndarray, first: int, count: int, seed: int) -> np.ndarray:
    """`count` of `rows` from position `first` on, every epoch a fresh permutation.

    A function of its arguments alone, so that any step can be replayed, and what is
    visited does not depend on the size of a batch.
    """
    size = len(rows)
    epochs = range(first // size, -(-(first + count) // size))
    orders = [
        np.random.default_rng((seed, epoch)).permutation(rows) for epoch in epochs
    ]
    start = first - epochs[0] * size
    return np.concatenate(orders)[start : start + count]
