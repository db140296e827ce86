"""The SHA-256 of the choices and ratings of a dataset, which tells it from others.

It is computed in bounded memory, and recorded when a dataset is written.

Shapes: I items, U users of a split.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from fsa.data.users import Users


class Choices(Protocol):
    """What the digest is of: a part of `fsa.data.dataset.Dataset`."""

    item_ids: tuple[str, ...]
    texts: tuple[str, ...]
    prompts: tuple[str, ...]
    item_prompt: np.ndarray
    groups: tuple[str, ...]
    users: Mapping[str, Users]


def choices_digest(data: Choices) -> str:
    """Returns the SHA-256 of items, and of every split's users and their lists.

    The order of items and users counts, since draws refer to positions.
    """
    hashed = hashlib.sha256()
    _add_texts(hashed, data.item_ids)
    _add_texts(hashed, data.texts)
    _add_named(hashed, data.prompts, data.item_prompt)
    for split, users in sorted(data.users.items()):
        _add_texts(hashed, [split])
        _add_texts(hashed, users.names)
        _add_named(hashed, data.groups, users.group)
        for column in ("chosen", "rejected", "items"):
            lengths = users.lengths(column)
            add_array(hashed, lengths, "<i8")
            _add_flat(hashed, users, column, int(lengths.sum()), "<i4")
        _add_flat(hashed, users, "values", int(lengths.sum()), "<f4")
    return hashed.hexdigest()


def _add_flat(hashed, users: Users, column: str, size: int, dtype: str) -> None:
    flat = (part.flat for (part,) in users.parts((column,)))
    _add_arrays(hashed, (size,), flat, dtype)


def _add_texts(hashed, texts: Iterable[str]) -> None:
    """Adds texts as the JSON of a list, which tells ["ab"] from ["a", "b"]."""
    hashed.update(b"[")
    for i, text in enumerate(texts):
        hashed.update(f"{', ' * (i > 0)}{json.dumps(text)}".encode())
    hashed.update(b"]")


def _add_named(hashed, names: Sequence[str], indices: np.ndarray) -> None:
    """Adds the name at each index, whatever the order of the names."""
    digests = [hashlib.sha256(json.dumps(name).encode()).digest() for name in names]
    table = np.frombuffer(b"".join(digests), np.uint8).reshape(len(names), 32)
    parts = (table[part] for part in _parts(indices))
    _add_arrays(hashed, (len(indices), 32), parts, "u1")


def _parts(array: np.ndarray, size: int = 100_000) -> Iterator[np.ndarray]:
    return (array[first : first + size] for first in range(0, len(array), size))


def add_array(hashed, array: np.ndarray, dtype: str) -> None:
    """Adds the shape and the numbers of an array, in the byte order that is named."""
    _add_arrays(hashed, array.shape, [array], dtype)


def _add_arrays(
    hashed, shape: Sequence[int], parts: Iterable[np.ndarray], dtype: str
) -> None:
    """Adds an array that comes in parts."""
    _add_texts(hashed, [str(size) for size in shape])
    for part in parts:
        hashed.update(np.ascontiguousarray(part, dtype).data)
