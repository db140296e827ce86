"""The tokens of many prompts with their responses, of any lengths, and padded arrays.

Shapes: I items, T tokens, K places for pairs in a row.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

# Why a choice between two responses is left out.
EQUAL = "chosen and rejected are the same tokens"


class PaddedTokens(NamedTuple):
    """Tokens of some items as arrays of one length T, with padding on the right.

    Attributes:
      tokens: `[..., T]` int32, a prompt and its response, then padding.
      start: `[...]` int32, position of the response's first token.
      stop: `[...]` int32, the position after its last token; `start` if it has none.
    """

    tokens: Any
    start: Any
    stop: Any

    @property
    def is_real(self) -> Any:
        """`[..., T]`, true for tokens that are not padding."""
        return np.arange(self.tokens.shape[-1]) < self.stop[..., None]

    @property
    def is_response(self) -> Any:
        """`[..., T]`, true for the tokens of the response."""
        past_prompt = np.arange(self.tokens.shape[-1]) >= self.start[..., None]
        return self.is_real & past_prompt


class RowTokens(NamedTuple):
    """Tokens of pairs of texts that share one row of length T, without gaps.

    Texts are in the order of the pairs, chosen before rejected. Places for pairs that
    a row does not have come last, with start and stop at the end of its texts.

    Attributes:
      tokens: `[..., T]` int32, prompts and responses, then padding.
      first: `[..., K, 2]` int32, place of the first token of each text.
      start: `[..., K, 2]` int32, place of the first token of its response.
      stop: `[..., K, 2]` int32, the place after its last token.
    """

    tokens: Any
    first: Any
    start: Any
    stop: Any

    @property
    def text(self) -> Any:
        """`[T]`, the number of each token's text in a row, 2 K - 1 at most.

        Padding counts to the last text.
        """
        ended = self._at[:, None] >= self.stop.reshape(-1)
        return jnp.minimum(ended.sum(-1), self.stop.size - 1)

    @property
    def begin(self) -> Any:
        """`[T]`, the place of the first token of each token's text.

        Of padding it is its own place.
        """
        own = self.first.reshape(-1)[self.text]
        return jnp.where(self._is_real, own, self._at)

    @property
    def is_response(self) -> Any:
        """`[T]`, true for the tokens of the responses."""
        return self._is_real & (self._at >= self.start.reshape(-1)[self.text])

    @property
    def _at(self) -> Any:
        return jnp.arange(self.tokens.shape[-1])

    @property
    def _is_real(self) -> Any:
        return self._at < self.stop.max()


@dataclasses.dataclass(frozen=True, eq=False)
class TokenTable:
    """Tokens of all items, of any lengths.

    Attributes:
      flat: tokens of all items, one item after the other, int32.
      offset: `[I + 1]`, where each item begins in `flat`.
      start: `[I]`, number of its tokens that belong to the prompt.
    """

    flat: np.ndarray
    offset: np.ndarray
    start: np.ndarray

    @classmethod
    def of(cls, items: Sequence[tuple[Sequence[int], int]]) -> "TokenTable":
        """Makes a table from (tokens, start) of items; no tokens for unusable ones."""
        lengths = [len(tokens) for tokens, _ in items]
        return cls(
            flat=np.concatenate([np.array(t, np.int32) for t, _ in items] or [[]]),
            offset=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
            start=np.array([start for _, start in items], np.int32),
        )

    @property
    def length(self) -> np.ndarray:
        """`[I]`, number of tokens of each item; 0 for an item that cannot be used."""
        return np.diff(self.offset)

    def __getitem__(self, item: int) -> np.ndarray:
        """Returns the tokens of one item."""
        return self.flat[self.offset[item] : self.offset[item + 1]]

    @functools.cached_property
    def kinds(self) -> np.ndarray:
        """`[I]`, a number for each item, the same for items of the same tokens."""
        numbers: dict[bytes, int] = {}
        tokens = (self[item].tobytes() for item in range(len(self.start)))
        return np.array([numbers.setdefault(t, len(numbers)) for t in tokens], np.int64)

    def pad(self, items: np.ndarray, length: int) -> PaddedTokens:
        """Pads the tokens of some items to one length.

        Args:
          items: `[...]`, indices of items; -1 gives padding alone.
          length: T, at least the length of each of these items.
        """
        tokens = np.zeros((items.size, length), np.int32)
        real = np.flatnonzero(items.ravel() >= 0)
        for position in real:
            own = self[items.flat[position]]
            tokens[position, : len(own)] = own
        known = items >= 0
        return PaddedTokens(
            tokens.reshape(*items.shape, length),
            np.where(known, self.start[items], 0).astype(np.int32),
            np.where(known, self.length[items], 0).astype(np.int32),
        )
