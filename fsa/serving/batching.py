"""`Batcher`: writes texts for several people at once, each at a z of its own.

A thread holds a batch of rows. A text that is asked for takes a free row as soon as its
prompt is read, whatever the others have written by then, and frees the row at its end.
The cache of keys and values has one index for all rows (`fsa.language.generation`);
since positions are counted over real tokens, the tokens of a row may be moved along its
slots, and so every row ends at the common index.

Shapes: B rows, P tokens of a prompt with their padding, S slots of the cache, D latent
dimensions, G tokens that are written in one call.
"""

import collections
import dataclasses
import functools
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fsa.inference.steerer import Steerer
from fsa.language.generation import left_pad, sample
from fsa.language.transformer import Cache
from fsa.sizes import FEW_NEW_TOKENS, FEW_TOKENS, padded

_LOG = logging.getLogger(__name__)

STOP, LENGTH, BROKEN = "stop", "length", "broken"

# G: how many tokens a person waits for before the next ones are shown.
_AT_ONCE = 4
# S of texts of up to 100 and, after prompts of a few sentences, 256 tokens.
_USUAL_SLOTS = (FEW_NEW_TOKENS, 4 * FEW_NEW_TOKENS)
# P of prompts of a few sentences, in the template of a chat.
_USUAL_TOKENS = 128


class Busy(Exception):
    """Too many texts wait to be begun."""


@dataclasses.dataclass(eq=False)
class Job:
    """A text that is asked for.

    Attributes:
      prompt: its tokens.
      latent: z `[D]` of the person.
      max_new_tokens: after how many tokens it ends.
      temperature: see `fsa.language.generation.sample`; 0 is greedy.
      top_p: likewise; 1 for all tokens.
      seed: of the draws. With the same prompt, z and options it gives the text of
        `Steerer.write` with this seed.
      emit: is called in the thread of the batcher with new tokens, and with `STOP`,
        `LENGTH` or `BROKEN` at the end, before that with None.
      cancelled: whether nobody waits for the text any more; then it leaves the batch
        before the next tokens are written.
    """

    prompt: Sequence[int]
    latent: np.ndarray
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    emit: Callable[[list[int], str | None], None]
    cancelled: bool = False
    _count: int = 0

    @property
    def slots(self) -> int:
        """How many slots of the cache it has filled."""
        return len(self.prompt) + max(0, self._count - 1)

    @property
    def most_slots(self) -> int:
        """How many slots it may fill."""
        return len(self.prompt) + self.max_new_tokens + _AT_ONCE

    def take(self, tokens: Sequence[int], stops: Sequence[int]) -> bool:
        """Passes tokens on as far as the text goes; returns whether it has ended."""
        kept = list(tokens)[: self.max_new_tokens - self._count]
        ends = [i for i, token in enumerate(kept) if token in stops]
        kept = kept[: ends[0] + 1] if ends else kept
        self._count += len(kept)
        full = self._count == self.max_new_tokens
        end = STOP if ends else LENGTH if full else None
        self.emit(kept, end)
        return end is not None


class _Rows(NamedTuple):
    """The state of B rows on the device.

    Attributes:
      cache: of the decoder, S slots.
      token: `[B]`, the last token of each row.
      count: `[B]`, how many tokens it has written.
      writes: `[B]`, whether it goes on.
      latent: `[B, D]`.
      seed: `[B]`.
      temperature: `[B]`.
      top_p: `[B]`.
    """

    cache: Cache
    token: Any
    count: Any
    writes: Any
    latent: Any
    seed: Any
    temperature: Any
    top_p: Any


class Batcher:
    """Writes the texts that are asked for, in a thread of its own."""

    def __init__(self, steerer: Steerer, *, rows: int = 8, waiting: int = 32):
        """Starts the thread.

        Args:
          steerer: the policy.
          rows: how many texts are written at once, a power of two.
          waiting: how many more may wait.
        """
        self._programs = _Programs(steerer)
        self._stops = steerer.language.stop_tokens
        self._most_rows, self._most_waiting = rows, waiting
        self._queue: collections.deque[Job] = collections.deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._forget()
        self._thread = threading.Thread(target=self._run, name="writing", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Takes a text to write.

        Raises:
          Busy: if too many wait already.
        """
        with self._changed:
            # Those that nobody waits for any more keep nobody else out.
            self._queue = collections.deque(
                each for each in self._queue if not each.cancelled
            )
            if len(self._queue) >= self._most_waiting or self._stopping:
                raise Busy
            self._queue.append(job)
            self._changed.notify()

    def warm_up(self, shortest: int = 1) -> None:
        """Compiles what usual prompts run, with short and with usual texts.

        Args:
          shortest: tokens of the shortest prompt.
        """
        length = padded(shortest, FEW_TOKENS)
        prompts = [self._read_nothing(length)]
        while length < _USUAL_TOKENS:
            length *= 2
            prompts.append(self._read_nothing(length))
        for slots in _USUAL_SLOTS:
            one, *_ = [self._programs.fit(row, slots, 1) for row in prompts]
            sizes = [1 << i for i in range(padded(self._most_rows).bit_length())]
            for size in sizes:
                rows = self._programs.pick(one, np.zeros(size, int))
                for other in sizes:
                    self._programs.pick(rows, np.zeros(other, int))
                rows = self._programs.fit(rows, slots, 1)
                rows = self._programs.put(rows, one, 0)
                jax.block_until_ready(self._programs.advance(rows))

    def _read_nothing(self, length: int) -> _Rows:
        latent = np.zeros(self._programs.latent_dim, np.float32)
        job = Job([0] * length, latent, 1, 1.0, 1.0, 0, lambda *_: None)
        return self._programs.prefill(job)

    def close(self) -> None:
        """Writes what was begun to its end, and ends the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _forget(self) -> None:
        """Begins without rows."""
        self._rows: _Rows | None = None
        # The job of each row; None where a row is free.
        self._jobs: list[Job | None] = []
        self._index = 0

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._queue or self._stopping or any(self._jobs)
                )
                if self._stopping and not self._queue and not any(self._jobs):
                    return
            try:
                self._join()
                self._advance()
            except Exception:
                # A batch that cannot be computed must not end all that come later.
                _LOG.exception("texts could not be written")
                for job in filter(None, self._jobs):
                    job.emit([], BROKEN)
                self._forget()

    def _join(self) -> None:
        """Lets jobs that wait take free rows."""
        self._jobs = [job and (None if job.cancelled else job) for job in self._jobs]
        while sum(map(bool, self._jobs)) < self._most_rows:
            with self._changed:
                job = self._queue.popleft() if self._queue else None
            if job is None:
                break
            if not job.cancelled:
                self._begin(job)
        if not any(self._jobs):
            self._forget()
        elif len(self._jobs) > padded(sum(map(bool, self._jobs))):
            self._resize(0)

    def _begin(self, job: Job) -> None:
        """Reads a prompt, writes the first token, and gives the row its place."""
        try:
            row = self._programs.prefill(job)
            ended = job.take([int(row.token[0])], self._stops)
        except Exception:
            _LOG.exception("a text could not be begun")
            job.emit([], BROKEN)
            return
        if ended:
            return
        slots = _slots_for(job.most_slots)
        if self._rows is None:
            self._jobs, self._index = [job], job.slots
            self._rows = self._programs.fit(row, slots, self._index)
            return
        self._resize(1)
        before = self._rows.cache.mask.shape[-1]
        slots = max(slots, before)
        index = max(self._index, job.slots)
        if index + _AT_ONCE > slots:
            index = max(each.slots for each in [job, *filter(None, self._jobs)])
        place = self._jobs.index(None)
        if (slots, index) != (before, self._index):
            self._rows = self._programs.fit(self._rows, slots, index)
        row = self._programs.fit(row, slots, index)
        self._rows = self._programs.put(self._rows, row, place)
        self._jobs[place], self._index = job, index

    def _resize(self, more: int) -> None:
        """Makes the batch the least power of two that holds its texts and `more`."""
        taken = [i for i, job in enumerate(self._jobs) if job]
        size = padded(len(taken) + more)
        if size != len(self._jobs):
            order = np.resize(taken or [0], size)
            self._rows = self._programs.pick(self._rows, order)
            own = [self._jobs[i] for i in taken]
            self._jobs = own + [None] * (size - len(taken))

    def _advance(self) -> None:
        """Writes the next tokens of all rows."""
        if self._rows is None:
            return
        slots = self._rows.cache.mask.shape[-1]
        if self._index + _AT_ONCE > slots:
            self._index = max(job.slots for job in filter(None, self._jobs))
            self._rows = self._programs.fit(self._rows, slots, self._index)
        self._rows, tokens = self._programs.advance(self._rows)
        self._index += _AT_ONCE
        for place, own in enumerate(np.asarray(tokens).T.tolist()):
            job = self._jobs[place]
            if job and job.take(own, self._stops):
                self._jobs[place] = None


class _Programs:
    """The compiled programs; each is compiled for a few sizes."""

    def __init__(self, steerer: Steerer):
        self._steerer = steerer
        self._stops = jnp.asarray(steerer.language.stop_tokens, jnp.int32)
        self._variables = steerer.language.variables, steerer.variables["params"]
        self.latent_dim = steerer.policy.reward_model.latent_dim

    def prefill(self, job: Job) -> _Rows:
        """Reads a prompt and writes its first token; a batch of one row."""
        length = padded(len(job.prompt), FEW_TOKENS)
        tokens, mask = left_pad([job.prompt], length=length)
        options = job.latent, job.seed, job.temperature, job.top_p
        kinds = np.float32, np.int32, np.float32, np.float32
        own = [kind(x)[None] for kind, x in zip(kinds, options, strict=True)]
        return self._prefill(self._variables, tokens, mask, *own)

    def advance(self, rows: _Rows) -> tuple[_Rows, jax.Array]:
        """Writes the next tokens `[G, B]`."""
        return self._advance(self._variables, rows)

    @functools.cached_property
    def _prefill(self):
        @jax.jit
        def run(variables, tokens, mask, latent, seed, temperature, top_p):
            decoder = self._steerer.decoder(*variables, latent)
            cache = decoder.init_cache(1, tokens.shape[1])
            logits, cache = decoder.step(tokens, mask, cache)
            none, yes = jnp.zeros(1, jnp.int32), jnp.ones(1, bool)
            row = _Rows(cache, none, none, yes, latent, seed, temperature, top_p)
            return _with_next(row, logits, self._stops)

        return run

    @functools.cached_property
    def _advance(self):
        @functools.partial(jax.jit, donate_argnums=1)
        def run(variables, rows):
            decoder = self._steerer.decoder(*variables, rows.latent)

            def step(rows, _):
                inputs = rows.token[:, None], rows.writes[:, None], rows.cache
                logits, cache = decoder.step(*inputs)
                rows = _with_next(rows._replace(cache=cache), logits, self._stops)
                return rows, rows.token

            return lax.scan(step, rows, None, length=_AT_ONCE)

        return run

    @staticmethod
    @functools.partial(jax.jit, static_argnums=1)
    def fit(rows: _Rows, slots: int, index: int) -> _Rows:
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

        moved = Cache(
            move(cache.keys, -2), move(cache.values, -2), move(cache.mask, -1), index
        )
        return rows._replace(cache=moved)

    @staticmethod
    @functools.partial(jax.jit, donate_argnums=0)
    def put(rows: _Rows, row: _Rows, place: int) -> _Rows:
        """Puts a row into its place; both end at the same index."""
        return _over_rows(lambda x, one: x.at[place].set(one[0]), rows, row)

    @staticmethod
    @jax.jit
    def pick(rows: _Rows, order: np.ndarray) -> _Rows:
        """Returns some of the rows, by their places."""
        return _over_rows(lambda x: x[order], rows)


def _slots_for(count: int) -> int:
    """Returns the least usual S that holds a text, and beyond them a power of two."""
    usual = [slots for slots in _USUAL_SLOTS if slots >= count]
    return usual[0] if usual else padded(count)


def _over_rows(fn: Callable, rows: _Rows, *others: _Rows) -> _Rows:
    """Applies `fn` to all arrays that have an axis of rows."""
    return jax.tree.map(lambda x, *y: fn(x, *y) if x.ndim else x, rows, *others)


def _with_next(rows: _Rows, logits: jax.Array, stops: jax.Array) -> _Rows:
    """Draws the next token of each row, as `generate` draws for its first example."""

    def key_of(seed, count):
        key = jax.random.fold_in(jax.random.key(seed), 0)
        return jax.random.fold_in(key, count)

    keys = jax.vmap(key_of)(rows.seed, rows.count)
    heat = jnp.maximum(rows.temperature, 1e-6)[:, None]
    greedy = jax.vmap(functools.partial(sample, temperature=0))(keys, logits)
    drawn = lax.cond(
        (rows.top_p < 1).any(),
        lambda: jnp.where(
            rows.top_p < 1,
            jax.vmap(lambda key, x, p: sample(key, x, top_p=p))(
                keys, logits / heat, rows.top_p
            ),
            jax.vmap(sample)(keys, logits / heat),
        ),
        lambda: jax.vmap(sample)(keys, logits / heat),
    )
    token = jnp.where(rows.temperature > 0, drawn, greedy)
    token = jnp.where(rows.writes, token, 0)
    writes = rows.writes & ~jnp.isin(token, stops)
    return rows._replace(token=token, count=rows.count + 1, writes=writes)
