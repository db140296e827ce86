"""Which users are visited, and in which order."""

import functools

import numpy as np


def visited(users: np.ndarray, first: int, count: int, seed: int) -> np.ndarray:
    """Returns `count` users from position `first` of the order on.

    Every epoch is a fresh permutation of `users`. The result depends on the arguments
    alone, so that any step can be replayed, and the order does not depend on the batch
    size.
    """
    size = len(users)
    epochs = range(first // size, -(-(first + count) // size))
    parts = [
        _order(size, seed, epoch)[
            max(first - epoch * size, 0) : first + count - epoch * size
        ]
        for epoch in epochs
    ]
    return users[np.concatenate(parts)]


def spread(users: np.ndarray, most: int) -> np.ndarray:
    """Returns at most `most` of the users, spread evenly over all of them."""
    if len(users) <= most:
        return users
    return users[np.arange(most) * len(users) // most]


# An epoch has many steps, and two of them may be needed at a time.
@functools.lru_cache(maxsize=2)
def _order(size: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the permutation of an epoch, `[size]`."""
    return np.random.default_rng((seed, epoch)).permutation(size).astype(np.int32)
