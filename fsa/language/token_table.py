"""Tokens of many responses, of any lengths, and arrays of some of them.

Shapes: I items, T tokens.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Padded(NamedTuple):
    """Some items' tokens as arrays.

    Attributes:
      tokens: `[..., T]` int32, a prompt and its response, then padding.
      start: `[...]` int32, position of the response's first token.
      stop: `[...]` int32, the position behind its last; `start` where there is none.
    """

    tokens: Any
    start: Any
    stop: Any

    @property
    def is_real(self) -> Any:
        """`[..., T]`, what is no padding."""
        return np.arange(self.tokens.shape[-1]) < self.stop[..., None]

    @property
    def is_response(self) -> Any:
        """`[..., T]`, the tokens of the response."""
        past_prompt = np.arange(self.tokens.shape[-1]) >= self.start[..., None]
        return self.is_real & past_prompt


@dataclasses.dataclass(frozen=True, eq=False)
class TokenTable:
    """Tokens of all items, of any lengths.

    Attributes:
      flat: tokens of all items in a row, int32.
      offset: `[I + 1]`, where each item begins in `flat`.
      start: `[I]`, number of its tokens that are the prompt's.
    """

    flat: np.ndarray
    offset: np.ndarray
    start: np.ndarray

    @classmethod
    def of(cls, items: Sequence[tuple[Sequence[int], int]]) -> "TokenTable":
        """From (tokens, start) of each item; no tokens where an item is unusable."""
        lengths = [len(tokens) for tokens, _ in items]
        return cls(
            flat=np.concatenate([np.array(t, np.int32) for t, _ in items] or [[]]),
            offset=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
            start=np.array([start for _, start in items], np.int32),
        )

    @property
    def length(self) -> np.ndarray:
        """`[I]`, tokens of each item; 0 of one that cannot be used."""
        return np.diff(self.offset)

    def __getitem__(self, item: int) -> np.ndarray:
        """An item's tokens."""
        return self.flat[self.offset[item] : self.offset[item + 1]]

    def pad(self, items: np.ndarray, length: int) -> Padded:
        """Arrays of some items, `[..., length]`; -1 among `items` is all padding."""
        tokens = np.zeros((items.size, length), np.int32)
        real = np.flatnonzero(items.ravel() >= 0)
        for row in real:
            own = self[items.flat[row]]
            tokens[row, : len(own)] = own
        known = items >= 0
        return Padded(
            tokens.reshape(*items.shape, length),
            np.where(known, self.start[items], 0).astype(np.int32),
            np.where(known, self.length[items], 0).astype(np.int32),
        )
