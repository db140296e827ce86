"""Finds the features of options, for a trained reward model.

An option is a vector, its features; the id or the text of an item of the run's dataset;
or any other text, which an embedder turns into features.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from fsa.data import dataset
from fsa.data.dataset import Dataset
from fsa.data.embedding import Embedder, embed
from fsa.episodes import Options
from fsa.errors import InputError


class OptionLookup:
    """Turns options into features `[N, F]` and item indices `[N]`."""

    def __init__(
        self,
        num_features: int,
        data_path: str | None = None,
        embedder: Embedder | None = None,
    ):
        """Remembers where features come from; the dataset is read when it is needed.

        Args:
          num_features: F.
          data_path: folder of the run's dataset, if it has one.
          embedder: what embedded that dataset, for texts that are none of its items.
        """
        self._num_features = num_features
        self._data_path = data_path
        self._embedder = embedder

    def __call__(self, name: str, options: Sequence[Any] | np.ndarray) -> Options:
        """Returns the features and items of N options; unknown items are -1.

        Args:
          name: name of the argument or column, for messages.
          options: N vectors `[F]`, ids or texts.

        Raises:
          InputError: if an option is unknown or does not fit, naming its number from 1;
            or if the dataset of the run is missing or damaged.
        """
        items = np.full(len(options), -1, np.int32)
        features = np.zeros((len(options), self._num_features), np.float32)
        unknown = []
        for i, option in enumerate(options):
            if not isinstance(option, str):
                features[i] = self._vector(name, i, option)
            elif option in self._known:
                items[i] = self._known[option]
                features[i] = self._data.features[items[i]]
            else:
                unknown.append(i)
        if unknown and not self._embedder:
            raise InputError(
                f"`{name}`, option {unknown[0] + 1}: {options[unknown[0]]!r} is not in "
                "the dataset of the run; give `embedder`, or a list of numbers"
            )
        if unknown:
            vectors = embed([options[i] for i in unknown], self._embedder)
            for i, vector in zip(unknown, vectors, strict=True):
                features[i] = self._vector(name, i, vector)
        return Options(features, items)

    @functools.cached_property
    def _data(self) -> Dataset:
        return dataset.load(self._data_path)

    @functools.cached_property
    def _known(self) -> dict[str, int]:
        """Item indices by text and by id."""
        if not self._data_path:
            return {}
        known = {text: i for i, text in enumerate(self._data.texts)}
        return known | {item_id: i for i, item_id in enumerate(self._data.item_ids)}

    def _vector(self, name: str, i: int, vector: Any) -> np.ndarray:
        try:
            vector = np.asarray(vector, np.float32)
        except (TypeError, ValueError):
            vector = np.full(0, np.nan)
        if vector.shape != (self._num_features,) or not np.isfinite(vector).all():
            raise InputError(
                f"`{name}`, option {i + 1}: shape {vector.shape}; give "
                f"{self._num_features} finite numbers, as the model was trained on"
            )
        return vector
