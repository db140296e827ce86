"""The order in which training users are visited."""

import numpy as np


def visited(users: np.ndarray, first: int, count: int, seed: int) -> np.ndarray:
    """Returns `count` users from position `first` of the order on.

    Every epoch is a fresh permutation of `users`. The result depends on the arguments
    alone, so that any step can be replayed, and the order does not depend on the batch
    size.
    """
    size = len(users)
    epochs = range(first // size, -(-(first + count) // size))
    orders = [
        np.random.default_rng((seed, epoch)).permutation(users) for epoch in epochs
    ]
    start = first - epochs[0] * size
    return np.concatenate(orders)[start : start + count]
