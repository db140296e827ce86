"""What makes two datasets the same data: digests of contents, and who made vectors.

A run records the identity of its data, so that other rows, other vectors, another
template or another embedder under the same path are noticed. It depends on what a
dataset holds, not on when, where and by which version of a library it was written.

Shapes: I items, F features.
"""

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from fsa.data.dataset import Dataset, Embedding


def identity(data: Dataset) -> dict[str, str]:
    """Computes the identity of a dataset.

    The order of items and users counts, since draws refer to positions.

    Returns:
      choices: SHA-256 of the items, and of every split's users, their groups, choices
        and ratings.
      vectors: SHA-256 of the features; "" without.
      embedder: name of the embedder; "" without features, as the next two.
      embedder_digest: SHA-256 of what the embedder computes with; "" if not known.
      template: the text that is embedded for an item.
    """
    embedding = data.embedding or Embedding("", template="")
    return {
        "choices": _of_choices(data),
        "vectors": _of_vectors(data.features) if data.features.shape[1] else "",
        "embedder": embedding.name,
        "embedder_digest": embedding.digest,
        "template": embedding.template,
    }


def _of_choices(data: Dataset) -> str:
    hashed = hashlib.sha256()
    _add_texts(hashed, data.item_ids)
    _add_texts(hashed, data.texts)
    _add_named(hashed, data.prompts, data.item_prompt)
    for split, users in sorted(data.users.items()):
        _add_texts(hashed, [split])
        _add_texts(hashed, users.names)
        _add_named(hashed, data.groups, users.group)
        for lists in (users.chosen, users.rejected, users.items):
            _add_array(hashed, lists.lengths, "<i8")
            _add_array(hashed, lists.flat, "<i4")
        _add_array(hashed, users.values.flat, "<f4")
    return hashed.hexdigest()


def _of_vectors(features: np.ndarray) -> str:
    hashed = hashlib.sha256()
    _add_array(hashed, features, "<f4")
    return hashed.hexdigest()


def _add_texts(hashed, texts: Sequence[str]) -> None:
    """Adds texts as JSON, which tells ["ab"] from ["a", "b"]."""
    hashed.update(json.dumps(list(texts)).encode())


def _add_named(hashed, names: Sequence[str], indices: np.ndarray) -> None:
    """Adds the name at each index, whatever the order of the names."""
    digests = [hashlib.sha256(json.dumps(name).encode()).digest() for name in names]
    table = np.frombuffer(b"".join(digests), np.uint8).reshape(len(names), 32)
    _add_array(hashed, table[indices], "u1")


def _add_array(hashed, array: np.ndarray, dtype: str) -> None:
    """Adds the shape and the numbers of an array, in the byte order that is named."""
    _add_texts(hashed, [str(size) for size in array.shape])
    hashed.update(np.ascontiguousarray(array, dtype).data)
