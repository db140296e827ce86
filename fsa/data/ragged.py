"""Lists of different lengths, held without padding."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Ragged:
    """Lists of different lengths, one after the other in one array.

    Shapes: R lists, E entries of all lists together; an entry may be an array itself.

    Attributes:
      flat: `[E, ...]`, the entries of all lists.
      offsets: `[R + 1]` int64; list i is `flat[offsets[i]:offsets[i + 1]]`.
    """

    flat: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, lists: Sequence[Sequence[Any] | np.ndarray], dtype: Any) -> Self:
        """Joins lists; no list at all gives no entry."""
        flat = [np.asarray(values, dtype) for values in lists]
        return cls(
            flat=np.concatenate(flat) if flat else np.empty(0, dtype),
            offsets=np.cumsum([0, *map(len, flat)], dtype=np.int64),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Joins the lists of several, at least one, one after the other."""
        before = np.cumsum([0, *(len(part.flat) for part in parts)])
        ends = [p.offsets[1:] + b for p, b in zip(parts, before[:-1], strict=True)]
        return cls(
            flat=np.concatenate([part.flat for part in parts]),
            offsets=np.concatenate([parts[0].offsets[:1], *ends]),
        )

    def __len__(self) -> int:
        """Number of lists, R."""
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> np.ndarray:
        """The entries of list i."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self.flat[self.offsets[i] : self.offsets[i + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        """The lists in order."""
        return (self[i] for i in range(len(self)))

    @property
    def lengths(self) -> np.ndarray:
        """`[R]` int64, the number of entries of each list."""
        return np.diff(self.offsets)

    def keep(self, mask: np.ndarray) -> Self:
        """Returns the lists without the entries for which `mask`, `[E]`, is false."""
        kept_before = np.concatenate([[0], np.cumsum(mask, dtype=np.int64)])
        return type(self)(self.flat[mask], kept_before[self.offsets])

    def pad(self, fill: float, length: int | None = None) -> np.ndarray:
        """Returns an array `[R, length, ...]` with `fill` behind each list's entries.

        Args:
          fill: the value of the padding.
          length: at least that of the longest list, which is the default.
        """
        if length is None:
            length = self.lengths.max(initial=0)
        padded = np.full(
            (len(self), length, *self.flat.shape[1:]), fill, self.flat.dtype
        )
        padded[np.arange(length) < self.lengths[:, None]] = self.flat
        return padded
