"""Finds the features of the options in a table, for a trained reward model.

An option is a list of numbers, its features; the id or the text of an item of the
run's dataset; or any other text, which an embedding model turns into features.
"""

from typing import Any

import numpy as np

from fsa.data import dataset
from fsa.data.columns import read_values
from fsa.data.embedding import embed
from fsa.errors import InputError


class OptionLookup:
    """Turns columns of options into features `[N, F]` and item indices `[N]`."""

    def __init__(
        self,
        num_features: int,
        data_path: str | None = None,
        embedder: str | None = None,
    ):
        """Reads the dataset whose items are known.

        Args:
          num_features: F.
          data_path: folder of the run's dataset, if it has one.
          embedder: folder of the model that embedded it, for texts that are no items.

        Raises:
          InputError: for a dataset that is missing or damaged.
        """
        self._num_features = num_features
        self._embedder = embedder
        self._known, self._features = {}, None
        if data_path:
            data = dataset.load(data_path)
            self._features = data.features
            self._known = {text: i for i, text in enumerate(data.texts)}
            self._known |= {name: i for i, name in enumerate(data.item_ids)}

    def __call__(self, path: str, column: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns features `[N, F]` and items `[N]` of a column; unknown items are -1.

        Raises:
          InputError: if an option is unknown or does not fit; names the row.
        """
        values = read_values(path, column)
        items = np.full(len(values), -1, np.int32)
        features = np.zeros((len(values), self._num_features), np.float32)
        unknown = []
        for i, value in enumerate(values):
            if isinstance(value, list):
                features[i] = self._check(path, column, i, value)
            elif value in self._known:
                items[i] = self._known[value]
                features[i] = self._features[items[i]]
            else:
                unknown.append(i)
        if unknown and not self._embedder:
            raise InputError(
                f"{path} row {unknown[0] + 1}: {column} {values[unknown[0]]!r} is not "
                "in the dataset; give `embedder`, or a list of numbers"
            )
        if unknown:
            vectors = embed([values[i] for i in unknown], self._embedder, 64)
            for i, vector in zip(unknown, vectors, strict=True):
                features[i] = self._check(path, column, i, vector)
        return features, items

    def _check(self, path: str, column: str, i: int, vector: Any) -> np.ndarray:
        vector = np.asarray(vector, np.float32)
        if vector.shape != (self._num_features,) or not np.isfinite(vector).all():
            raise InputError(
                f"{path} row {i + 1}: {column} must be {self._num_features} finite "
                f"numbers, as the model was trained on, not shape {vector.shape}"
            )
        return vector
