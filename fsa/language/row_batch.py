"""`RowBatch`: a batch of texts that begin and end at different times.

A text takes a free row of the batch whenever its prompt is read, whatever the others
have written by then, and frees the row at its end. The cache of keys and values has one
index for all rows; since positions are counted over real tokens, the tokens of a row
may be moved along its slots, and so every row ends at the common index. The cache has
few sizes, of which it takes the least that its longest text needs.

`fsa.serving.batching` keeps a batch for people who chat, and `write_all` writes many
texts with one.

Shapes: B rows, R rows of a group that begins, P tokens of a prompt with their padding,
S slots of the cache, G tokens that are written in one call, V vocabulary.
"""

import collections
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from fsa.language.generation import Decoder, left_pad
from fsa.language.transformer import Cache
from fsa.parallel.examples import filled_up, parts_of
from fsa.parallel.sharding import fetch, on_mesh, place_examples
from fsa.sizes import (
    FEW_NEW_TOKENS,
    FEW_PROMPTS,
    FEW_TOKENS,
    closely_padded,
    padded,
)

STOP, LENGTH = "stop", "length"

# G of `write_all`: a text that ends early idles for less than these tokens.
_AT_ONCE = 8
# The share of rows that `write_all` leaves free until it fills them together: a group
# of prompts is read faster than each alone.
_FREE_SHARE = 8


class Text:
    """A text that is to be written; subclasses hold what is attributes here.

    Attributes:
      prompt: its tokens.
      own: tree of its own values, such as z; NumPy.
      max_new_tokens: after how many tokens it ends.
      seed: of the draws.
      example_id: what the draws depend on besides `seed`, see `generate`.
      count: how many tokens it has.
    """

    prompt: Sequence[int]
    own: Any
    max_new_tokens: int
    seed: int
    example_id: int
    count: int

    @property
    def slots(self) -> int:
        """How many slots of the cache it has filled."""
        return len(self.prompt) + max(0, self.count - 1)

    def receive(self, tokens: list[int], end: str | None) -> None:
        """Takes new tokens, and at the end `STOP` or `LENGTH`, before that None."""
        raise NotImplementedError

    def take(self, tokens: Sequence[int], stops: Sequence[int]) -> bool:
        """Receives tokens as far as the text goes; returns whether it has ended."""
        kept = list(tokens)[: self.max_new_tokens - self.count]
        ends = [i for i, token in enumerate(kept) if token in stops]
        kept = kept[: ends[0] + 1] if ends else kept
        self.count += len(kept)
        full = self.count == self.max_new_tokens
        end = STOP if ends else LENGTH if full else None
        self.receive(kept, end)
        return end is not None


class Rows(NamedTuple):
    """The state of B rows on the devices.

    Attributes:
      cache: of the decoder, S slots.
      token: `[B]`, the last token of each row.
      count: `[B]`, how many tokens it has written.
      writes: `[B]`, whether it goes on.
      seed: `[B]`, see `Text`.
      example_id: `[B]`, see `Text`.
      own: tree of `[B, ...]`, see `Text`.
    """

    cache: Cache
    token: Any
    count: Any
    writes: Any
    seed: Any
    example_id: Any
    own: Any


class RowPrograms:
    """The compiled programs of a `RowBatch`; each is compiled for a few sizes."""

    def __init__(
        self,
        decoder_of: Callable[[Any, Any], Decoder],
        draw: Callable[[jax.Array, jax.Array, Any], jax.Array],
        stop_tokens: Sequence[int],
        axes: Cache,
        *,
        at_once: int = _AT_ONCE,
        mesh: Mesh | None = None,
    ):
        """Compiles nothing yet.

        Args:
          decoder_of: makes the decoder from (variables, own `[B, ...]`).
          draw: (keys `[B]`, logits `[B, V]`, own) -> tokens `[B]`.
          stop_tokens: tokens that end a text.
          axes: the axes of the rows in the decoder's cache.
          at_once: G.
          mesh: the mesh over which rows are split, if any.
        """
        self.stop_tokens, self.at_once, self.mesh = stop_tokens, at_once, mesh
        self._decoder_of, self._draw = decoder_of, draw
        self._axes = axes
        self._prefill = jax.jit(on_mesh(self._read, mesh))
        self._advance = jax.jit(on_mesh(self._go_on, mesh), donate_argnums=1)

    def prefill(self, variables: Any, texts: Sequence[Text], size: int) -> Rows:
        """Reads prompts and writes the first token of each; `size` rows R."""
        length = padded(max(len(text.prompt) for text in texts), FEW_TOKENS)
        tokens, mask = left_pad([text.prompt for text in texts], length=length)
        seeds, ids = (
            np.array([getattr(text, name) for text in texts], np.int32)
            for name in ("seed", "example_id")
        )
        own = jax.tree.map(lambda *x: np.stack(x), *(text.own for text in texts))
        examples = filled_up((tokens, mask, seeds, ids, own), size)
        return self._prefill(variables, *place_examples(examples, self.mesh))

    def _read(self, variables, tokens, mask, seed, example_id, own) -> Rows:
        decoder = self._decoder_of(variables, own)
        cache = decoder.init_cache(*tokens.shape)
        logits, cache = decoder.step(tokens, mask, cache)
        none = jnp.zeros_like(seed)
        rows = Rows(cache, none, none, none == 0, seed, example_id, own)
        return self._with_next(rows, logits)

    def advance(self, variables: Any, rows: Rows) -> tuple[Rows, jax.Array]:
        """Writes the next tokens `[G, B]`."""
        return self._advance(variables, rows)

    def _go_on(self, variables, rows: Rows):
        decoder = self._decoder_of(variables, rows.own)

        def step(rows, _):
            inputs = rows.token[:, None], rows.writes[:, None], rows.cache
            logits, cache = decoder.step(*inputs)
            rows = self._with_next(rows._replace(cache=cache), logits)
            return rows, rows.token

        return lax.scan(step, rows, None, length=self.at_once)

    def _with_next(self, rows: Rows, logits: jax.Array) -> Rows:
        """Draws the next token of each row, as `generate` does."""

        def key_of(seed, example_id, count):
            key = jax.random.fold_in(jax.random.key(seed), example_id)
            return jax.random.fold_in(key, count)

        keys = jax.vmap(key_of)(rows.seed, rows.example_id, rows.count)
        token = jnp.where(rows.writes, self._draw(keys, logits, rows.own), 0)
        stops = jnp.asarray(self.stop_tokens, jnp.int32)
        writes = rows.writes & ~jnp.isin(token, stops)
        return rows._replace(token=token, count=rows.count + 1, writes=writes)

    @staticmethod
    @functools.partial(jax.jit, static_argnums=1)
    def fit(rows: Rows, slots: int, index: int) -> Rows:
        """Moves the tokens of all rows so that they end at `index` of S slots."""
        cache = rows.cache
        old = cache.mask.shape[-1]
        shift = index - cache.index

        def move(x, axis):
            axis = x.ndim + axis
            widths = [(0, 0)] * x.ndim
            widths[axis] = (0, max(0, slots - old))
            moved = jnp.roll(jnp.pad(x, widths), shift, axis)
            return lax.slice_in_dim(moved, 0, slots, axis=axis)

        keys, values = jax.tree.map(lambda x: move(x, -2), (cache.keys, cache.values))
        return rows._replace(cache=Cache(keys, values, move(cache.mask, -1), index))

    def put(self, rows: Rows, new: Rows, places: np.ndarray) -> Rows:
        """Puts new rows into their places `[R]`; those with place B are left out.

        All rows must end at the same index.
        """
        return _put(self._axes, rows, new, places)

    def pick(self, rows: Rows, order: np.ndarray) -> Rows:
        """Returns some of the rows, by their places."""
        return _pick(self._axes, rows, order)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _put(axes: Cache, rows: Rows, new: Rows, places: jax.Array) -> Rows:
    def put(axis, x, own):
        at = (*[slice(None)] * axis, places)
        return x.at[at].set(own, mode="drop")

    return _over_rows(axes, put, rows, new)


@functools.partial(jax.jit, static_argnums=0)
def _pick(axes: Cache, rows: Rows, order: jax.Array) -> Rows:
    return _over_rows(axes, lambda axis, x: jnp.take(x, order, axis), rows)


def _over_rows(axes: Cache, fn: Callable, rows: Rows, *others: Rows) -> Rows:
    """Applies `fn(axis of the rows, *arrays)` to all arrays that have rows."""

    def over(axis, *trees):
        return jax.tree.map(functools.partial(fn, axis), *trees)

    caches = [each.cache for each in (rows, *others)]
    cache = Cache(
        *(
            field[0] if axis is None else over(axis, *field)
            for axis, *field in zip(axes, *caches, strict=True)
        )
    )
    rest = [each._replace(cache=None) for each in (rows, *others)]
    return over(0, *rest)._replace(cache=cache)


class RowBatch:
    """Texts that are written together.

    Attributes:
      texts: the text of each row; None where a row is free.
    """

    def __init__(
        self, programs: RowPrograms, variables: Any, slots_for: Callable[[int], int]
    ):
        """Makes an empty batch.

        Args:
          programs: its programs.
          variables: of the decoder.
          slots_for: the number of slots S of a cache that must hold so many.
        """
        self._programs, self._variables = programs, variables
        self._slots_for = slots_for
        self.forget()

    def forget(self) -> None:
        """Drops all rows."""
        self._rows: Rows | None = None
        self.texts: list[Text | None] = []
        self._index = 0

    @property
    def taken(self) -> int:
        """The number of rows that have a text."""
        return sum(text is not None for text in self.texts)

    def add(self, texts: Sequence[Text], size: int, rows: int) -> None:
        """Begins texts, which take free rows.

        Args:
          texts: at most as many as rows are free.
          size: the number of rows R that the prompts are read in.
          rows: the number of rows B that the batch gets if it has none.
        """
        new = self._programs.prefill(self._variables, texts, size)
        stops = self._programs.stop_tokens
        first = fetch(new.token)[: len(texts)].tolist()
        ended = [
            text.take([token], stops) for text, token in zip(texts, first, strict=True)
        ]
        going = [i for i, end in enumerate(ended) if not end]
        if not going:
            return
        self._make_room([texts[i] for i in going])
        if self._rows is None:
            new = self._programs.fit(new, self._slots, self._index)
            self._rows = self._programs.pick(new, np.resize(going, rows))
            self.texts = [texts[i] for i in going] + [None] * (rows - len(going))
            return
        free = [i for i, text in enumerate(self.texts) if text is None]
        places = np.full(size, len(self.texts))
        for place, i in zip(free, going, strict=False):
            places[i], self.texts[place] = place, texts[i]
        new = self._programs.fit(new, self._slots, self._index)
        self._rows = self._programs.put(self._rows, new, places)

    def _make_room(self, new: Sequence[Text] = ()) -> None:
        """Fits the cache to what the next tokens, and texts that begin, need."""
        if self._rows is None:
            self._index, self._slots = 0, 0
        at_once = self._programs.at_once
        longest = max(text.slots for text in [*new, *filter(None, self.texts)])
        index, slots = max(self._index, longest), self._slots
        if index + at_once > slots:
            index = longest
            slots = max(slots, self._slots_for(index + at_once))
        if self._rows is not None and (index, slots) != (self._index, self._slots):
            self._rows = self._programs.fit(self._rows, slots, index)
        self._index, self._slots = index, slots

    def resize(self, size: int) -> None:
        """Makes the batch one of `size` rows, which hold its texts."""
        taken = [i for i, text in enumerate(self.texts) if text is not None]
        self._rows = self._programs.pick(self._rows, np.resize(taken or [0], size))
        own = [self.texts[i] for i in taken]
        self.texts = own + [None] * (size - len(taken))

    def advance(self) -> None:
        """Writes the next tokens of all rows, of which at least one is taken."""
        self._make_room()
        self._rows, tokens = self._programs.advance(self._variables, self._rows)
        self._index += self._programs.at_once
        stops = self._programs.stop_tokens
        for place, own in enumerate(fetch(tokens).T.tolist()):
            text = self.texts[place]
            if text is not None and text.take(own, stops):
                self.texts[place] = None


def write_all(
    programs: RowPrograms, variables: Any, texts: Sequence[Text], rows: int
) -> None:
    """Writes texts, of which those that end make room for others at once.

    Args:
      programs: the programs.
      variables: of the decoder.
      texts: any number of texts.
      rows: B, how many are written together, a multiple of the mesh's parts.
    """
    parts = parts_of(programs.mesh)

    def size_for(count, least):
        return min(rows, parts * padded(-(-count // parts), -(-least // parts)))

    # Prompts of one length are read together, without padding.
    queue = collections.deque(sorted(texts, key=lambda text: len(text.prompt)))
    least = max(1, rows // _FREE_SHARE)
    slots_for = functools.partial(closely_padded, least=FEW_NEW_TOKENS)
    batch = RowBatch(programs, variables, slots_for)
    while queue or batch.taken:
        free = rows - batch.taken
        if queue and free >= min(least, len(queue)):
            group = [queue.popleft() for _ in range(min(free, len(queue)))]
            batch.add(group, size_for(len(group), least), rows)
        elif not queue:
            # A quarter, so that few sizes are compiled.
            size = size_for(batch.taken, FEW_PROMPTS)
            if 4 * size <= len(batch.texts):
                batch.resize(size)
        if batch.taken:
            batch.advance()
