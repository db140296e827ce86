"""What makes two datasets the same data: digests of contents, and who made vectors.

A run records the identity of its data, so that other rows, other vectors, another
template or another embedder under the same path are noticed. It depends on what a
dataset holds, not on when, where and by which version of a library it was written.

Shapes: I items, F features.
"""

import hashlib

import numpy as np

from fsa.data.choices_digest import add_array, choices_digest
from fsa.data.dataset import Dataset, Embedding


def identity(data: Dataset, choices: str | None = None) -> dict[str, str]:
    """Computes the identity of a dataset.

    Args:
      data: the dataset.
      choices: its `choices_digest`, if that is recorded.

    Returns:
      choices: see `choices_digest`.
      vectors: SHA-256 of the features; "" without.
      embedder: name of the embedder; "" without features, as the next two.
      embedder_digest: SHA-256 of what the embedder computes with; "" if not known.
      template: the text that is embedded for an item.
    """
    embedding = data.embedding or Embedding("", template="")
    return {
        "choices": choices or choices_digest(data),
        "vectors": _of_vectors(data.features) if data.features.shape[1] else "",
        "embedder": embedding.name,
        "embedder_digest": embedding.digest,
        "template": embedding.template,
    }


def _of_vectors(features: np.ndarray) -> str:
    hashed = hashlib.sha256()
    add_array(hashed, features, "<f4")
    return hashed.hexdigest()
